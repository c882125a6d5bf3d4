"""The disk is full while a command works."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial

from tests.faults.base import JOBS, copied
from tests.faults.bench import Bench, Problems, in_one_line, occupied, resize, small_disk, unmountable
from tests.faults.line import Case, Line

TRIED = ("check", "ingest", "encode", "search", "derive", "retrain", "evaluate", "stream", "compress", "score")
TRIED += ("sweep", "chain")


def lines() -> dict[str, Line]:
    return {"disk-full": Line(_cases, unmountable)}


def _cases(times: int, draw: random.Random) -> Iterator[Case]:
    for job in TRIED:
        yield partial(filled, job, draw.random())


def filled(job: str, share: float, bench: Bench) -> Problems:
    """A disk in memory has room for a share of what the command writes; after the failure, it has enough."""
    with small_disk(bench.folder / "project") as place:
        copied(bench.base.before(job), place, JOBS[job].changes)
        resize(place, occupied(place) + int(share * bench.base.control(job).bytes))
        running = bench.start(job, place)
        bench.late = running.wait() == 0
        if not bench.late:
            yield from in_one_line(running)
        yield from bench.alone(place)
        resize(place, None)
        yield from bench.again(job, place) if not bench.late else bench.same(job, place)
