"""Kills and signals: a command ends at a random moment, and is given again."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from functools import partial

from tests.faults.bench import Bench, Moment, Problems, synchronised
from tests.faults.line import Case, Line
from tests.faults.processes import ENDING, Running, until

TIMES = {"search": 1, "retrain": 1}  # of --kills; a quarter of it for the other commands
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: -signal.SIGHUP}
SIGNALLED = ("search", "retrain", "workers", "evaluate", "sweep", "stream", "chain")
JOBS = ("check", "ingest", "encode", "search", "derive", "retrain", "workers", "evaluate")
JOBS += ("sweep", "stream", "chain", "compress", "score")


def lines() -> dict[str, Line]:
    killed = {f"kill-{job}": Line(partial(kills, job)) for job in JOBS}
    ended = {
        name: Line(partial(signals, signum))
        for name, signum in (("sigint", signal.SIGINT), ("sigterm", signal.SIGTERM), ("sighup", signal.SIGHUP))
    }
    return killed | ended


def kills(job: str, times: int, draw: random.Random) -> Iterator[Case]:
    """Half of the kills come after a random share of the work, the others right before a change of a file."""
    for number in range(times if job in TIMES else max(1, times // 4)):
        yield partial(killed, job, draw.random(), number % 2 == 1, draw.random() < 0.5)


def killed(job: str, share: float, by_event: bool, between: bool, bench: Bench) -> Problems:
    """``kill -9``.

    Args:
        share: of the seconds or of the events of files before the kill.
        by_event: whether it is of the events.
        between: whether MLflow gets what is recorded before the command runs again.
    """
    place = bench.project(job)
    moment: Moment = 1 + int(share * bench.base.control(job).events) if by_event else share
    bench.disturbed(job, place, moment, lambda running: running.send(signal.SIGKILL)).wait()
    yield from bench.alone(place)
    if between:
        yield from synchronised(place)
    yield from bench.again(job, place)


def signals(signum: signal.Signals, times: int, draw: random.Random) -> Iterator[Case]:
    for job in draw.sample(SIGNALLED, min(len(SIGNALLED), max(3, times))):
        yield partial(signalled, signum, job, draw.random())


def signalled(signum: signal.Signals, job: str, share: float, bench: Bench) -> Problems:
    """A signal, to the whole group if a terminal would send it there."""
    place = bench.project(job)

    def send(running: Running) -> None:
        running.send(signum, group=signum != signal.SIGTERM)

    running = bench.disturbed(job, place, share, send)
    if not until(lambda: not running.runs(), ENDING):
        yield f"it still runs {ENDING:.0f} s after {signum.name}"
        running.send(signal.SIGKILL, group=True)
    status = running.wait()
    if not bench.late and status not in (STATUS[signum], 0):
        yield f"it ends with {status}, not {STATUS[signum]}"
    if "Traceback" in running.said():
        yield "a traceback"
    yield from bench.alone(place)
    yield from bench.again(job, place)
