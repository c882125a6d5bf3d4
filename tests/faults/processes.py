"""Commands as processes in groups of their own: forked from this one, which has imported them, or begun anew."""

from __future__ import annotations

import contextlib
import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil

POLL_SECONDS = 0.01
LONGEST = 900.0  # seconds that a command may take; other work on the machine counts
ENDING = 45.0  # seconds in which the processes of a command must have ended after it
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")
OWN = ("PIPELINE_", "MLFLOW_", "DVC_", "GIT_", "MAKE")  # variables that commands do not inherit


class Running:
    """A process that was started here.

    Args:
        pid: of the process, which leads a group.
        printed: file with what it prints.
    """

    def __init__(self, pid: int, printed: Path) -> None:
        self.pid, self.printed = pid, printed
        self.status: int | None = None  # that it ended with; of a signal, its negative number
        self._seconds = 0.0

    def runs(self) -> bool:
        if self.status is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if ended else None
        return self.status is None

    def wait(self) -> int:
        """The status; a process that takes longer than `LONGEST` is killed."""
        until(lambda: not self.runs(), LONGEST)
        if self.status is None:
            self.send(signal.SIGKILL, group=True)
            until(lambda: not self.runs(), ENDING)
            raise TimeoutError(f"it takes more than {LONGEST:.0f} s: {self.said()[-300:]}")
        return self.status

    def seconds(self) -> float:
        """Seconds of processors that it and its descendants have used so far."""
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(self.pid)
            total = 0.0
            for one in [process, *process.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    used = one.cpu_times()
                    total += used.user + used.system + used.children_user + used.children_system
            self._seconds = max(self._seconds, total)
        return self._seconds

    def send(self, signum: signal.Signals, group: bool = False) -> None:
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.pid, signum)

    def said(self) -> str:
        return self.printed.read_text(errors="replace") if self.printed.exists() else ""


class FileEvents:
    """Counts what this process does to the files of a folder; right before event number ``last``, it kills itself."""

    def __init__(self, folder: Path, last: int | None) -> None:
        self.number = 0
        self._folder, self._last = f"{folder}/", last

    def __call__(self, event: str, given: tuple[Any, ...]) -> None:
        if event == "open":
            changes = isinstance(given[2], int) and bool(given[2] & WRITING)
        else:
            changes = event in CHANGES
        if changes and isinstance(given[0], str | os.PathLike) and self._is_here(os.fspath(given[0])):
            self.number += 1
            if self.number == self._last:
                os.kill(os.getpid(), signal.SIGKILL)

    def _is_here(self, path: str) -> bool:
        return os.path.join(self._folder, path).startswith(self._folder)  # noqa: PTH118


def command(module: str, *words: str) -> Callable[[], object]:
    """What ``python -m module words`` does."""

    def act() -> None:
        sys.argv = [module, *words]
        sys.modules.pop(module, None)  # or a warning would say that it is there
        runpy.run_module(module, run_name="__main__", alter_sys=True)

    return act


def forked(
    act: Callable[[], object],
    folder: Path,
    printed: Path,
    last: int | None = None,
    counted: Path | None = None,
    **variables: str,
) -> Running:
    """Start an act in a folder.

    Args:
        printed: file for what it prints.
        last: number of the event of files at which it kills itself.
        counted: file for the number of events.
        variables: of the environment, which has nothing else of the project's own.
    """
    sys.stdout.flush()
    if pid := os.fork():
        return Running(pid, printed)
    status = 1
    try:
        os.setpgrp()
        for signum, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
            signal.signal(signum, handler)
        os.environ.clear()  # the case's process has only what commands may have
        os.environ.update(environment(**variables))
        os.chdir(folder)
        with printed.open("wb") as file:
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
        events = FileEvents(folder, last)
        sys.addaudithook(events)
        status = _status(act)
        if counted is not None:
            counted.write_text(str(events.number))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _status(act: Callable[[], object]) -> int:
    """The status that Python ends with after an act; an error is printed."""
    try:
        act()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def started(words: Sequence[str], folder: Path, printed: Path, **variables: str) -> Running:
    """Start a program in a folder."""
    with printed.open("wb") as file:
        process = subprocess.Popen(
            list(words),
            cwd=folder,
            env=environment(**variables),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            process_group=0,
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
        )
    process.returncode = 0  # `Running` asks for the status
    return Running(process.pid, printed)


def environment(**variables: str) -> dict[str, str]:
    """The environment of a shell in which the project is installed, with one thread, and these variables."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OWN)}
    path = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", "")])
    own = {"PATH": path, "OMP_NUM_THREADS": "1", "DVC_NO_ANALYTICS": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}
    return {**kept, **own, **variables}


def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether something becomes so within some seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def belonging(folder: Path) -> Iterator[psutil.Process]:
    """The processes that work in a folder, or whose command names it."""
    here = str(folder)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            cwd = process.cwd()
            if f"{cwd}/".startswith(f"{here}/") or any(here in word for word in process.cmdline()):
                yield process


def end_all(folder: Path) -> None:
    """Kill what belongs to a folder."""
    for process in list(belonging(folder)):
        with contextlib.suppress(psutil.Error):
            process.kill()
