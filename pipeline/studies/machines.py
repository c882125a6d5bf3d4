"""Where the stages of a study run: in processes of this machine. `cluster` has the nodes of a Ray cluster."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from pipeline.workflow import process
from pipeline.workflow.code import ROOT


class Machines(Protocol):
    """Where the stages of a study run. Several threads may call `run` at the same time."""

    jobs: int  # cells that run at the same time

    def run(self, command: Sequence[str], output: Path) -> int:
        """Run a command in the working directory, and write what it prints to a file; its exit status.

        Raises:
            RuntimeError: in one line, if the command cannot end by itself, e.g. because its machine is gone.
        """
        ...

    def stop(self) -> None:
        """End all commands that run."""
        ...


class ThisMachine:
    """Runs each command as a process of this machine.

    Args:
        jobs: cells that run at the same time and share the cores; by default one for each core.
    """

    def __init__(self, jobs: int | None = None) -> None:
        self.jobs = jobs or process.cores()
        self._threads = max(1, process.cores() // self.jobs)
        self._running: set[subprocess.Popen[bytes]] = set()

    def run(self, command: Sequence[str], output: Path) -> int:
        started = start(command, output, self._threads)
        self._running.add(started)
        try:
            return started.wait()
        finally:
            self._running.discard(started)

    def stop(self) -> None:
        for running in list(self._running):
            running.terminate()  # the stage ends with it; the next run continues from its checkpoint


def start(command: Sequence[str], output: Path, threads: int, given: Mapping[str, str] = {}) -> subprocess.Popen[bytes]:
    """Start a command that ends with this process.

    Args:
        command: its words.
        output: file for what it prints; its folder is created.
        threads: of the command.
        given: variables of its environment that differ from those of this process.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("w") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, env=environment(threads, given))


def environment(threads: int, given: Mapping[str, str] = {}) -> dict[str, str]:
    """The environment of the stages: shared cores, the code of this checkout, and an end with this process."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    code = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    own = {"PATH": path, "PYTHONPATH": code, process.WATCHED: process.this_process()}
    return {**os.environ, **given, **own, "OMP_NUM_THREADS": str(threads)}
