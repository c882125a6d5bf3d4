"""The stage's end of the process that brings journals to the store."""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from pipeline.tracking.identity import this_process
from pipeline.tracking.place import store_uri

log = logging.getLogger("pipeline.tracking")


class Uploader:
    """The process of `pipeline.tracking.serve`, one for all trackers.

    It reads commands from its stdin, answers on its stdout, and sees by its end when we are gone.
    """

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._answers: dict[str, bool] = {}
        self._points_left = 0
        self._changed = threading.Condition()
        self._gone = False
        self._process = _start(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        commands, answers = self._process.stdin, self._process.stdout
        if commands is None or answers is None:
            raise OSError("the uploader process has no pipes")
        self._commands = commands
        threading.Thread(target=self._listen, args=(answers,), daemon=True).start()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def open(self, journal: Path, root: Path, experiment: str) -> None:
        self._answers.pop(str(journal), None)
        uri = store_uri(root)
        self._send(
            {"open": str(journal), "root": str(root), "uri": uri, "experiment": experiment, "process": this_process()}
        )

    def close(self, journal: Path, timeout: float | None) -> bool:
        """Wait until the store has all of a journal; False if it does not, or not in time."""
        self._send({"close": str(journal)})
        began = time.monotonic()
        shown = 0.0
        with self._changed:
            while str(journal) not in self._answers and not self._gone:
                waited = time.monotonic() - began
                if timeout is not None and waited > timeout:
                    return False
                if waited - shown > 2:
                    shown = waited
                    left = f", {self._points_left:,} points left" if self._points_left else ""
                    print(f"tracking: bringing the journal to MLflow, {waited:.0f} s{left}", file=sys.stderr)
                self._changed.wait(0.2)
            return self._answers.get(str(journal), False)

    def stop(self) -> None:
        if self.owner == os.getpid():
            with contextlib.suppress(OSError):
                self._commands.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=1.0)

    def _send(self, command: Mapping[str, Any]) -> None:
        with contextlib.suppress(OSError):  # it is gone: `_listen` says so
            self._commands.write(json.dumps(command).encode() + b"\n")
            self._commands.flush()

    def _listen(self, answers: IO[bytes]) -> None:
        with answers:
            for line in answers:
                answer = json.loads(line)
                if "warning" in answer:
                    log.warning("%s", answer["warning"])
                with self._changed:
                    self._points_left = answer.get("left", self._points_left)
                    if "closed" in answer:
                        self._answers[answer["closed"]] = answer["arrived"]
                    self._changed.notify_all()
        with self._changed:
            self._gone = True
            self._changed.notify_all()


_current: Uploader | None = None


def current() -> Uploader:
    global _current
    if _current is None or _current.owner != os.getpid() or not _current.alive:
        _current = Uploader()
        atexit.register(_current.stop)
    return _current


_behind: list[subprocess.Popen[bytes]] = []


def bring_in_later(journal: Path, root: Path, experiment: str) -> None:
    """Start a process that waits for somebody else to bring the journal in, and does it if nobody comes.

    It waits `serve.GRACE_SECONDS`, but no longer than the process that runs the stages, e.g. dvc.
    """
    _behind.append(_start(str(journal), str(root), experiment, str(os.getppid())))


def _start(*words: str, stdin: int = subprocess.DEVNULL, stdout: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    """`pipeline.tracking.serve` in a fresh interpreter that finds the same files as this one."""
    here = str(Path(__file__).parents[2])
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "pipeline.tracking.serve", *words],
        stdin=stdin,
        stdout=stdout,
        stderr=subprocess.DEVNULL,
        cwd="/",  # one that stays: trackers of several repositories may share this process
        env={**os.environ, "PYTHONPATH": os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])},
        start_new_session=True,  # Ctrl-C is for the stage; this process outlives it to write down how it ended
    )
