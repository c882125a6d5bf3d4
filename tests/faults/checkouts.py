"""Real checkouts under DVC: killed, twice at once, with other parameters between, in odd folders, without git."""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from tests.faults.base import JOBS, Base, given_to
from tests.faults.bench import Bench, Problems, last_words, synchronised
from tests.faults.line import Case, Line
from tests.faults.oracle import Left, stored_badly
from tests.faults.processes import LONGEST, Running, environment, started, until

JOB, CHANGED = "retrain", "changed"  # the stage that DVC runs, and the same with other parameters
STAGES = ("check", "ingest", "encode", "search", "derive")  # that are there
KILLED = (".pipeline/ckpt", ".pipeline/tracking")  # what the killed stage has kept for its next attempt
ODD = "a checkout, spaced & ünïcode 漢字"
DVC = (sys.executable, "-m", "dvc")
ENDS = ((signal.SIGKILL, False), (signal.SIGKILL, True), (signal.SIGTERM, False), (signal.SIGINT, True))
ENDS += ((signal.SIGHUP, True),)  # whether the signal goes to all processes of the terminal


def lines() -> dict[str, Line]:
    return {
        "dvc": Line(_ends),
        "dvc-changed": Line(lambda times, draw: [partial(changed, JOB, CHANGED, draw.random())]),
        "dvc-twice": Line(lambda times, draw: [partial(twice, JOB)]),
        "odd-folder": Line(lambda times, draw: [partial(ended, JOB, signal.SIGKILL, True, draw.random(), ODD, True)]),
        "no-git": Line(lambda times, draw: [partial(ended, JOB, signal.SIGKILL, True, draw.random(), "plain", False)]),
    }


def _ends(times: int, draw: random.Random) -> Iterator[Case]:
    yield partial(ended, JOB, signal.SIGKILL, False, None, "checkout", True)
    for signum, everywhere in ENDS:
        yield partial(ended, JOB, signum, everywhere, draw.random(), "checkout", True)


def checkout(base: Base, place: Path, git: bool = True) -> Path:
    """A checkout of its own code, in which all stages before `JOB` are done."""
    shutil.copytree(base.before(JOB), place)  # it follows the links to the code
    committer = ["-c", "user.name=someone", "-c", "user.email=someone@example.org"]
    commit = ["git", *committer, "commit", "--quiet", "--message", "a checkout"]
    versioned = [["git", "init", "--quiet"], ["git", "add", "."], commit] if git else []
    started_with = [*DVC, "init", "--quiet", *([] if git else ["--no-scm"])]
    (place / ".gitignore").write_text("/artifacts/\n/.pipeline/\n/mlflow.db*\n/mlartifacts/\n__pycache__/\n")
    for words in [*versioned, started_with, [*DVC, "commit", "--quiet", "--force", *STAGES]]:
        subprocess.run(words, cwd=place, env=_variables(place), check=True, capture_output=True)
    return place


def _variables(place: Path) -> dict[str, str]:
    return environment(PYTHONPATH=str(place), GIT_CEILING_DIRECTORIES=str(place.parent))


def _repro(place: Path, bench: Bench) -> Running:
    return started([*DVC, "repro", JOB], place, bench.printed("dvc"), **_variables(place))


def ended(
    job: str,
    signum: signal.Signals,
    everywhere: bool,
    share: float | None,
    name: str,
    git: bool,
    bench: Bench,
) -> Problems:
    """A signal ends DVC, or DVC and its stage, at a share of its work or while it starts; then DVC is run again."""
    place = checkout(bench.base, bench.folder / name, git)
    yield from _ended(place, signum, everywhere, share, bench)
    yield from _again(place, bench)


def _ended(place: Path, signum: signal.Signals, everywhere: bool, share: float | None, bench: Bench) -> Problems:
    running = _repro(place, bench)
    if share is None:
        moment = 0.0
        until(lambda: not running.runs() or _has_started(running), LONGEST)
    else:
        moment = bench.begun(running, place, JOB) + share * bench.base.control(JOB).seconds
    bench.at(running, moment, lambda running: running.send(signum, group=everywhere))
    running.wait()
    yield from bench.alone(place)


def _has_started(running: Running) -> bool:
    """Whether DVC has started the stage, which still imports what it needs."""
    with contextlib.suppress(psutil.Error):
        return any(f"stages.{JOB}" in child.cmdline() for child in psutil.Process(running.pid).children(recursive=True))
    return False


def _again(place: Path, bench: Bench, job: str = JOB, beside: Mapping[str, Any] = {}) -> Problems:
    """The same command again must leave what an undisturbed one leaves, besides runs of another one before."""
    running = _repro(place, bench)
    if running.wait():
        yield f"dvc repro again ends with {running.status}: {last_words(running)}"
        return
    yield from bench.alone(place)
    yield from _stored(place, bench)
    yield from synchronised(place)
    wanted = bench.base.control(job).left
    yield from Left(wanted.files, {**beside, **wanted.runs}).differences(Left.of(place))


def _stored(place: Path, bench: Bench) -> Problems:
    """Whether DVC finds everything up to date, and its cache holds what it says."""
    status = started([*DVC, "status", JOB], place, bench.printed("status"), **_variables(place))
    if status.wait() or "up to date" not in status.said():
        yield f"dvc status: {status.said()[-200:]}"
    yield from stored_badly(place / ".dvc/cache")


def changed(job: str, other: str, share: float, bench: Bench) -> Problems:
    """A kill, a run with another parameter, and one with the first value again, each from what the last one left."""
    place = checkout(bench.base, bench.folder / "checkout")
    yield from _ended(place, signal.SIGKILL, True, share, bench)
    first = (place / "params.yaml").read_bytes()
    given_to(place, JOBS[other].changes)
    running = _repro(place, bench)
    if running.wait():
        yield f"dvc repro with another parameter ends with {running.status}: {last_words(running)}"
        return
    yield from bench.alone(place)
    yield from synchronised(place)
    wanted, found = bench.base.control(other).left, Left.of(place)
    kept = {name: digest for name, digest in found.files.items() if not name.startswith(KILLED)}
    own = wanted.runs.keys() - bench.base.control(job).left.runs.keys()
    beside = {name: wanted.runs[name] for name in own}
    yield from Left(wanted.files, beside).differences(
        Left(kept, {name: run for name, run in found.runs.items() if name in own})
    )
    (place / "params.yaml").write_bytes(first)
    yield from _again(place, bench, job, beside)


def twice(job: str, bench: Bench) -> Problems:
    """Two of DVC in one checkout at the same time: one of them may say that the other has the lock."""
    place = checkout(bench.base, bench.folder / "checkout")
    both = [_repro(place, bench), _repro(place, bench)]
    statuses = [running.wait() for running in both]
    if all(statuses):
        yield f"both fail: {last_words(both[0])}; {last_words(both[1])}"
    for running in both:
        if running.status and not ("lock" in running.said() or "busy" in running.said()):
            yield f"it does not say that the other one runs: {last_words(running)}"
    yield from bench.alone(place)
    yield from _again(place, bench)
