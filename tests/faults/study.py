"""A study, with DVC and its cells below it, is ended again and again, and then runs to its end."""

from __future__ import annotations

import random
import shutil
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from tests.faults.base import CHECKPOINTS
from tests.faults.bench import Bench, Problems, last_words, synchronised
from tests.faults.line import Case, Line
from tests.faults.oracle import Left
from tests.faults.processes import ENDING, Running, environment, started, until
from tests.project import ROOT

NAME = "overall"
COMMAND = (sys.executable, "-m", "stages.study", "run", NAME, "--jobs", "1")
TRAINING = {"epochs": 1, "batch_size": 50, "checkpoint_seconds": CHECKPOINTS}
TINY: dict[str, Any] = {"dataset": {"options": {"rows": 1500}}, "search": TRAINING, "retrain": TRAINING}
GRID: dict[str, Any] = {
    "quick": {"dataset": ["tiny"], "backbone": ["fm"], "method": ["autodim", "full"], "seeds": [0]},
    "backbone": {"fm": {"params": {"backbone": {"name": "fm"}}}},
    "method": {
        "autodim": {"arms": ["searched"]},
        "full": {"params": {"method": {"name": "full"}}, "arms": ["full"]},
    },
}


def lines() -> dict[str, Line]:
    return {"study": Line(_case)}


def _case(times: int, draw: random.Random) -> list[Case]:
    ends = [(signal.SIGKILL, number % 2 == 1) for number in range(max(2, times // 4))]
    ends += [(signal.SIGTERM, False), (signal.SIGINT, True), (signal.SIGHUP, True)]
    return [partial(interrupted, "check", [(*end, draw.random()) for end in ends])]


def interrupted(job: str, ends: Sequence[tuple[signal.Signals, bool, float]], bench: Bench) -> Problems:
    """Each end comes after a random share of the processor seconds that the undisturbed study takes.

    Args:
        job: whose results the study begins from.
        ends: signal, whether all processes of the group get it, and the share.
    """
    first = _start(_checkout(job, bench, "undisturbed"), bench)
    while first.runs():
        first.seconds()
    if first.wait():
        raise RuntimeError(f"the undisturbed study fails: {first.said()[-1000:]}")
    yield from bench.alone(bench.folder / "undisturbed")
    place = _checkout(job, bench, "disturbed")
    for signum, everywhere, share in ends:
        running = _start(place, bench)
        bench.at(running, share * first.seconds(), partial(Running.send, signum=signum, group=everywhere))
        if not until(lambda running=running: not running.runs(), ENDING):  # type: ignore[misc]
            yield f"the study still runs {ENDING:.0f} s after {signum.name}"
        running.send(signal.SIGKILL, group=True)
        running.wait()
        if "Traceback" in running.said() and signum != signal.SIGKILL:
            yield f"a traceback after {signum.name}"
        yield from bench.alone(place)
    last = _start(place, bench)
    if last.wait():
        yield f"the study again ends with {last.status}: {last_words(last)}"
        return
    yield from bench.alone(place)
    for checkout in (bench.folder / "undisturbed", place):
        yield from synchronised(checkout)
    yield from Left.of(bench.folder / "undisturbed").differences(Left.of(place))


def _checkout(job: str, bench: Bench, name: str) -> Path:
    """A checkout of its own code with a small study."""
    place = bench.folder / name
    shutil.copytree(bench.base.before(job), place)  # it follows the links to the code
    folder = place / "studies" / NAME
    folder.mkdir(parents=True)
    for file in ("dvc.yaml", "claims.csv"):
        shutil.copy(ROOT / "studies" / NAME / file, folder)
    defined = yaml.safe_load((ROOT / "studies" / NAME / "dvc.yaml").read_text())["stages"]
    quick = {stage: given for stage, given in defined.items() if stage.endswith("-quick")}
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"vars": ["params.yaml"], "stages": quick}, sort_keys=False))
    (folder / "params.yaml").write_text(yaml.safe_dump(GRID, sort_keys=False))
    (folder.parent / "datasets.yaml").write_text(yaml.safe_dump({"quick": {"tiny": {"params": TINY}}}))
    return place


def _start(place: Path, bench: Bench) -> Running:
    variables = environment(PYTHONPATH=str(place), GIT_CEILING_DIRECTORIES=str(place.parent))
    return started(COMMAND, place, bench.printed("study"), **variables)
