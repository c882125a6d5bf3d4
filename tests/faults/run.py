"""Tries the cases of a line, each in a process of its own, some at the same time."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.workflow.progress import progress
from tests.faults.base import Base
from tests.faults.bench import Bench, unmounted
from tests.faults.line import Case, told
from tests.faults.lines import LINES
from tests.faults.processes import Running, end_all

WAITING = 0.1  # seconds between two looks at the cases that run


@dataclass(frozen=True)
class Tried:
    """A case that has ended: what was wrong, and what its commands said."""

    line: str
    number: int
    about: str
    problems: Sequence[str]
    late: bool
    seconds: float
    said: str


def one(name: str, number: int, base: Base, folder: Path, seed: int, kills: int) -> Tried:
    """The case of a line with this number."""
    case = _cases(name, seed, kills)[number]
    return next(_tried(name, [(number, case)], base, folder, 1))


def of_line(name: str, base: Base, folder: Path, seed: int, kills: int, jobs: int) -> Iterator[Tried]:
    """All cases of a line."""
    yield from _tried(name, list(enumerate(_cases(name, seed, kills))), base, folder, jobs)


def _cases(name: str, seed: int, kills: int) -> list[Case]:
    return list(LINES[name].cases(kills, random.Random(f"{seed} {name}")))


def _tried(name: str, cases: Sequence[tuple[int, Case]], base: Base, folder: Path, jobs: int) -> Iterator[Tried]:
    waiting = list(reversed(cases))
    running: list[tuple[int, Case, float, Running, Path]] = []
    for job in {word for _, case in cases for word in getattr(case, "args", ()) if isinstance(word, str)}:
        with contextlib.suppress(KeyError):
            base.control(job)  # once, before processes are forked that ask for it
    with progress(total=len(cases), desc=name, unit=" cases") as bar:
        while waiting or running:
            while waiting and len(running) < jobs:
                number, case = waiting.pop()
                place = folder / f"{name}-{number:04}"
                place.mkdir()
                running.append((number, case, time.monotonic(), _forked(case, Bench(base, place)), place))
            time.sleep(WAITING)
            for entry in list(running):
                number, case, began, process, place = entry
                if not process.runs():
                    running.remove(entry)
                    bar.update()
                    yield _ended(name, number, case, time.monotonic() - began, process, place)


def _ended(name: str, number: int, case: Case, seconds: float, process: Running, place: Path) -> Tried:
    result = place / "result.json"
    found = json.loads(result.read_text()) if result.exists() else {"late": False, "problems": [process.said()[-600:]]}
    said = "\n".join(f"{path.name}:\n{path.read_text(errors='replace')}" for path in sorted(place.glob("printed-*")))
    end_all(place)
    unmounted(place)
    shutil.rmtree(place, ignore_errors=True)
    return Tried(name, number, told(case), found["problems"], found["late"], seconds, said)


def _forked(case: Case, bench: Bench) -> Running:
    printed = bench.folder / "printed"
    sys.stdout.flush()
    if pid := os.fork():
        return Running(pid, printed)
    try:
        with printed.open("wb") as file:
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
        problems = list(case(bench))
        (bench.folder / "result.json").write_text(json.dumps({"late": bench.late, "problems": problems}))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
