"""Commands as processes, forked from one that has imported torch and the like, which takes seconds."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import TypeVar

import psutil

from pipeline.workflow import process

Found = TypeVar("Found")


def start(run: Callable[[], object], folder: Path, printed: Path, **environment: str) -> ForkServerProcess:
    """Start what a command does, in a folder; needs the fixture `forks`, whose environment it has.

    Args:
        run: a function at the top of a module.
        printed: file for what it prints.
        environment: variables that differ.
    """
    context = multiprocessing.get_context("forkserver")
    started = context.Process(target=_run, args=(run, folder, printed, environment))
    started.start()
    return started


def _run(run: Callable[[], object], folder: Path, printed: Path, environment: Mapping[str, str]) -> None:
    os.environ.update(environment)
    os.chdir(folder)
    with printed.open("wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.argv = ["stage"]
    process.main(run)


def awaited(ask: Callable[[], Found | None], alive: Callable[[], bool] = lambda: True) -> Found:
    """What `ask` returns once it is not None, while something is alive."""
    deadline = time.monotonic() + 120
    while (found := ask()) is None:
        assert alive() and time.monotonic() < deadline, "it ended too early, or did not happen in time"
        time.sleep(0.01)
    return found


def check_ended(processes: Iterable[psutil.Process]) -> None:
    """Check that processes end within half a minute; a zombie has ended, whoever should have noticed."""
    deadline = time.monotonic() + 30
    for one in processes:
        while _runs(one):
            assert time.monotonic() < deadline, f"{one} still runs"
            time.sleep(0.05)


def _runs(one: psutil.Process) -> bool:
    try:
        return one.is_running() and one.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
