"""The process that brings journals to the store while a stage runs, or after it.

A process and not a thread: MLflow needs 100 microseconds of interpreter per point, which a thread would take
from training. `pipeline.tracking.uploader` starts it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from pipeline.tracking import synchronise
from pipeline.tracking.journal import owned
from pipeline.tracking.place import StoreError, meeting_mlflow, refusal

if TYPE_CHECKING:
    from pipeline.tracking.replay import Replay
    from pipeline.tracking.store import Store

TICK_SECONDS = 5.0  # between two looks at the journal: points of one series that arrive together are cheap to store
RETRY_SECONDS = 30.0  # after a store failed for the first time; doubles up to ten times as much
GRACE_SECONDS = 20.0  # that a journal left for later waits for another stage's uploader

Say = Callable[[Mapping[str, Any]], None]


class _Job:
    """One journal in the hands of the uploader process."""

    def __init__(self, command: dict[str, Any], stores: dict[tuple[str, ...], Store]) -> None:
        self.journal = Path(command["open"])
        self.command = command
        self.warned = False
        self.failed_at = -math.inf
        self.pause = RETRY_SECONDS
        self._replay: Replay | None = None
        self._stores = stores

    def advance(self, say: Say) -> bool:
        """Bring in what is new. Returns whether the store has all that the journal holds."""
        uri, root, experiment = place = tuple(self.command[word] for word in ("uri", "root", "experiment"))
        try:
            if self._replay is None:
                # here, and not above: MLflow takes seconds to import, and this process may not need it
                from pipeline.tracking.replay import Replay, bring_in
                from pipeline.tracking.store import Store

                store = self._stores.get(place) or Store(uri, Path(root), experiment)
                self._stores[place] = store
                store.reap()
                with contextlib.suppress(Exception):  # it stays, and must not keep this journal from arriving
                    list(bring_in(store))
                process = self.command["process"]
                self._replay = Replay(store, self.journal, process=process, progress=lambda left: say({"left": left}))
            self._replay.advance()
        except Exception as error:  # MLflow, SQLAlchemy and requests share no base class; training must not notice
            self._replay = None
            self.pause = min(self.pause * 2, RETRY_SECONDS * 10) if self.warned else RETRY_SECONDS
            self.failed_at = time.monotonic()
            if not self.warned:
                say({"warning": refusal(uri, error)})
            self.warned = True
            return False
        return True

    def close(self, say: Say) -> bool:
        """The last attempt; not made where one has just failed."""
        return time.monotonic() - self.failed_at > 15 and self.advance(say)

    def outlive(self, say: Say) -> None:
        """The stage is gone without a word: write down that it was killed, unless it has come back already."""
        if not self.journal.exists() or not self.close(say) or self._replay is None:
            return
        for _ in range(20):  # a stage's own workers may hold the journal for a while longer
            with contextlib.suppress(Exception), owned(self.journal) as free:
                if free:
                    self._replay.abandon()
                    return
            time.sleep(0.5)


def serve() -> None:
    """Commands on stdin, one JSON line each, until its end; answers on what was stdout."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stage = os.getppid()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # MLflow prints links to runs
    os.nice(10)

    def say(answer: Mapping[str, Any]) -> None:
        with contextlib.suppress(OSError):
            answers.write(json.dumps(answer) + "\n")
            answers.flush()

    jobs: dict[str, _Job] = {}
    stores: dict[tuple[str, ...], Store] = {}
    unread = b""
    due = 0.0
    while True:
        wait = max(0.0, min(due - time.monotonic(), 1.0)) if jobs else 1.0
        if select.select([0], [], [], wait)[0]:
            received = os.read(0, 65536)
            if not received:
                break
            *lines, unread = (unread + received).split(b"\n")
            for line in lines:
                command = json.loads(line)
                if "open" in command:
                    jobs[command["open"]] = _Job(command, stores)
                    due = 0.0
                elif command["close"] in jobs:
                    job = jobs.pop(command["close"])
                    say({"closed": command["close"], "arrived": job.close(say)})
        elif os.getppid() != stage:
            break
        if time.monotonic() >= due:
            for job in jobs.values():
                if time.monotonic() - job.failed_at > job.pause:
                    job.advance(say)
            due = time.monotonic() + TICK_SECONDS
    for job in jobs.values():
        job.outlive(say)


def bring_in_if_left(journal: Path, root: Path, experiment: str, starter: int) -> None:
    """Bring in a journal that nobody has brought in for `GRACE_SECONDS`, or by the end of process ``starter``."""
    os.nice(10)
    deadline = time.monotonic() + GRACE_SECONDS
    while journal.exists() and time.monotonic() < deadline and psutil.pid_exists(starter):
        time.sleep(0.5)
    if journal.exists():
        with contextlib.suppress(StoreError):  # the next uploader warns
            synchronise(root, experiment=experiment)


if __name__ == "__main__":
    with meeting_mlflow():
        if sys.argv[1:]:
            bring_in_if_left(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
        else:
            serve()
    os._exit(0)  # all is stored; MLflow takes its time to go
