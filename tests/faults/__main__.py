"""Disturb the project's commands, and see whether they leave in the end what undisturbed ones do.

python -m tests.faults                             # an hour or more on two cores; `make faults` does this
python -m tests.faults --seed 7 --kills 5          # other moments, fewer kills
python -m tests.faults --only sigterm,kill-search  # some lines
python -m tests.faults --case sigterm:3            # one case again, with what the commands said; also with --seed

A line is one kind of disturbance, e.g. ``kill -9`` in the search at random moments. Each of its cases has a project of
its own, in a folder that is removed. After the disturbance the same command runs again. Then every file must be as
after an undisturbed run, MLflow must hold the same runs with every point once, and no process and no draft may be left.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline.workflow import process
from tests.faults.base import Base, imported
from tests.faults.bench import unmounted
from tests.faults.lines import LINES
from tests.faults.processes import end_all
from tests.faults.run import Tried, of_line, one


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=20, help="of search and retrain (20); of others a quarter")
    parser.add_argument("--only", default="", metavar="LINE,LINE", help=f"lines: {', '.join(LINES)}")
    parser.add_argument("--case", metavar="LINE:NUMBER", help="one case, with what its commands said")
    parser.add_argument("--jobs", type=int, default=process.cores(), help="cases at the same time")
    given = parser.parse_args()
    name, _, number = (given.case or "").rpartition(":")
    names = [word.strip() for word in given.only.split(",") if word.strip()] or list(LINES)
    if unknown := sorted({*names, *([name] if name else [])} - set(LINES)):
        parser.error(f"there is no line {', '.join(unknown)}; there are {', '.join(LINES)}")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True) as place:
        folder = Path(place)
        try:
            imported()
            base = Base(folder / "base")
            if name:
                tried = one(name, int(number), base, folder, given.seed, given.kills)
                print(f"{tried.said}\n{_line(tried)}")
                sys.exit(bool(tried.problems))
            failed = _table({line: of_line(line, base, folder, given.seed, given.kills, given.jobs) for line in names})
        finally:
            end_all(folder)
            unmounted(folder)
    print(f"faults: seed {given.seed}, {time.monotonic() - began:.0f} s, {_spent():.0f} s of processors")
    sys.exit(bool(failed))


def _table(cases: dict[str, Iterator[Tried]]) -> int:
    """Try all cases; print those that fail as they end, and a row for each line; the number of those that failed."""
    print("| line | tried | came too late | as undisturbed | failed | processor seconds |")
    print("| --- | --- | --- | --- | --- | --- |")
    total, late, failed = 0, 0, 0
    for name, of_name in cases.items():
        missing = LINES[name].missing()
        if missing:
            print(f"| {name} | not tried: {missing} | | | | |", flush=True)
            continue
        began, done = _spent(), []
        for tried in of_name:
            done.append(tried)
            if tried.problems:
                print(_line(tried), file=sys.stderr, flush=True)
        wrong, after = sum(bool(tried.problems) for tried in done), sum(tried.late for tried in done)
        print(_row(name, len(done), after, wrong, _spent() - began), flush=True)
        total, late, failed = total + len(done), late + after, failed + wrong
    print(_row("all", total, late, failed, None))
    return failed


def _spent() -> float:
    """Seconds of processors that this process and those which have ended below it have used."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _row(name: str, tried: int, late: int, failed: int, seconds: float | None) -> str:
    took = "" if seconds is None else f"{seconds:.0f}"
    return f"| {name} | {tried} | {late} | {tried - failed} | {failed} | {took} |"


def _line(tried: Tried) -> str:
    wrong = "".join(f"\n    {problem}" for problem in tried.problems)
    verdict = "failed" if wrong else "as undisturbed"
    return f"{tried.line}:{tried.number} {tried.about}: {verdict} ({tried.seconds:.0f} s){wrong}"


if __name__ == "__main__":
    process.main(run, arguments=True)
