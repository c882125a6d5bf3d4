"""The follower: one process per repository and store that brings journals to MLflow while stages write them.

    python -m pipeline.tracking.follow ROOT EXPERIMENT

It is a process, since MLflow needs 100 microseconds of interpreter per point, which a thread would take from training;
and it is detached, since it marks the runs of a stage that was killed. A tracker takes the lock of the follower; if it
gets it, there is no follower, and it starts one, which inherits the lock. The follower ends when there is nothing left
to do, at the latest with the process that runs the stages.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import time
from argparse import ArgumentParser
from io import FileIO
from pathlib import Path
from typing import Any

import psutil

from pipeline.tracking.journal import has_arrived
from pipeline.tracking.place import StoreError, destination, folder, lock_now
from pipeline.tracking.sync import Inbox

LOOK_SECONDS = 0.2  # between two looks at the folder
PASS_SECONDS = 5.0  # between two passes over journals that grow: points of one series together are cheap to store
RETRY_SECONDS = 15.0  # after the store has not answered
LINGER_SECONDS = 20.0  # without anything to do, while the process that runs the stages lives and may start another
STARTS = 3  # of a follower that ends before it has done its work

log = logging.getLogger("pipeline.tracking")


class Follower:
    """The follower of a repository, as seen by a tracker, and its state, which tells trackers how far it is.

    Args:
        root: the repository.
        experiment: in MLflow.
    """

    def __init__(self, root: Path, experiment: str) -> None:
        self.destination = destination(root, experiment)
        self._root, self._experiment = root, experiment
        self._lock = folder(root) / f"follow-{self.destination}.lock"
        self._state = folder(root) / f"follow-{self.destination}.json"

    def take(self) -> FileIO | None:
        """The lock of the follower; None if there is one already."""
        self._lock.parent.mkdir(parents=True, exist_ok=True)
        lock = FileIO(self._lock, "a")
        if lock_now(lock):
            return lock
        lock.close()
        return None

    def start(self) -> bool:
        """Start the follower, unless there is one. Returns whether there was none."""
        lock = self.take()
        if lock is None:
            return False
        package = str(Path(__file__).parents[2])
        path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
        command = [sys.executable, "-P", "-m", "pipeline.tracking.follow", str(self._root), self._experiment]
        command += ["--runner", str(os.getppid()), "--lock", str(lock.fileno())]
        with lock:  # it stays locked until the follower, which inherits it, ends
            self._state.unlink(missing_ok=True)
            try:
                subprocess.run(
                    ["sh", "-c", '"$@" >/dev/null 2>&1 </dev/null &', "sh", *command],  # no child of this process
                    cwd="/",
                    env={**os.environ, "PYTHONPATH": path},
                    start_new_session=True,  # Ctrl-C is for the stage
                    pass_fds=[lock.fileno()],
                    check=True,
                )
            except (OSError, subprocess.SubprocessError) as error:  # no reason to stop a training
                log.warning("cannot start the process that brings records to MLflow: %s", error)
        return True

    def wait(self, journal: Path, seconds: float | None = None) -> None:
        """Wait until a journal without a writer has arrived, or the store refuses it.

        Args:
            seconds: that this may take; without a limit if left out.
        """
        began = shown = time.monotonic()
        starts = 0
        while not has_arrived(journal, self.destination) and not self._refusal(journal):
            now = time.monotonic()
            if seconds is not None and now - began > seconds:
                return
            if starts == STARTS:
                command = f"python -m pipeline.tracking.follow {self._root} {self._experiment}"
                log.warning("the process that brings records to MLflow does not run; `%s` shows why", command)
                return
            starts += self.start()
            if now - shown > 2:
                shown, left = now, self._read().get("left")
                progress = f", {left:,} points left" if left else ""
                log.info("tracking: bringing the journal to MLflow, %.0f s%s", now - began, progress)
            time.sleep(0.05)

    def warnings(self, journal: Path) -> list[str]:
        """What the user should know: why a journal has not arrived, and which others nobody can read."""
        return [*filter(None, [self._refusal(journal)]), *self._read().get("unreadable", [])]

    def tell(self, **state: Any) -> None:
        """Write the state; only the process itself does.

        Args:
            left: points of a journal that are on their way.
            refusal: why the store does not answer, or None.
            refused: by the name of a journal, why the store does not accept it.
            unreadable: what is wrong with journals that cannot be read.
        """
        draft = self._state.with_suffix(".draft")
        with contextlib.suppress(OSError):  # a full disk: trackers learn nothing, and records still arrive
            draft.write_text(json.dumps(state))
            draft.replace(self._state)

    def _refusal(self, journal: Path) -> str | None:
        state = self._read()
        return state.get("refusal") or state.get("refused", {}).get(journal.name)

    def _read(self) -> dict[str, Any]:
        try:
            return json.loads(self._state.read_text())
        except FileNotFoundError:  # it has just been started
            return {}


class _Work:
    """What the process does while it holds the lock of the follower."""

    def __init__(self, root: Path, experiment: str, runner: int) -> None:
        self._follower = Follower(root, experiment)
        self._inbox = Inbox(root, experiment, follow=True, progress=self._tell)
        self._runner = runner
        self._refusal: str | None = None

    def run(self) -> None:
        """Bring in journals until nothing is left to do, and the runner has ended or starts no other stage."""
        self._tell()
        due, busy = 0.0, time.monotonic()
        while True:
            now, waiting = time.monotonic(), self._inbox.waiting()
            urgent = any(
                (not written or self._inbox.is_new(path)) and self._may_pass(path) for path, written in waiting
            )
            if waiting and (urgent or now >= due):
                self._bring_in()
                due = time.monotonic() + (RETRY_SECONDS if self._refusal or self._inbox.refused else PASS_SECONDS)
            elif self.is_left(waiting):
                busy = now
            elif now - busy > LINGER_SECONDS or not psutil.pid_exists(self._runner):
                return
            time.sleep(LOOK_SECONDS)

    def is_left(self, waiting: list[tuple[Path, bool]] | None = None) -> bool:
        """Whether a stage is writing, or a journal waits that the store may accept."""
        waiting = self._inbox.waiting() if waiting is None else waiting
        return any(written or self._may_pass(path) for path, written in waiting)

    def _may_pass(self, path: Path) -> bool:
        return self._refusal is None and path.name not in self._inbox.refused

    def _bring_in(self) -> None:
        try:
            for line in self._inbox.bring_in():
                print(line, flush=True)
            self._refusal = None
        except StoreError as error:
            self._refusal = str(error)
        self._tell()

    def _tell(self, left: int = 0) -> None:
        unreadable = list(self._inbox.unreadable.values())
        self._follower.tell(left=left, refusal=self._refusal, refused=self._inbox.refused, unreadable=unreadable)


def follow(root: Path, experiment: str, runner: int, lock: FileIO | None = None) -> bool:
    """Bring journals to the store while stages write them, until nothing is left to do.

    Args:
        runner: id of the process that runs the stages, e.g. of dvc.
        lock: the lock of the follower, if this process has it already.
    Returns:
        False if there is another follower.
    """
    follower, work = Follower(root, experiment), _Work(root, experiment, runner)
    lock = lock or follower.take()
    if lock is None:
        return False
    os.nice(10)
    while lock:
        with lock:
            work.run()
        # a tracker that has begun in the meantime has found the lock taken
        lock = follower.take() if work.is_left() else None
    return True


def main() -> None:
    """The command line, see above."""
    parser = ArgumentParser(prog="python -m pipeline.tracking.follow", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("root", type=Path, help="the repository")
    parser.add_argument("experiment", help="name of the experiment in MLflow")
    parser.add_argument("--runner", type=int, default=os.getppid(), help="id of the process that runs the stages")
    parser.add_argument("--lock", type=int, help="number of the open lock file, from a tracker that starts this")
    options = parser.parse_args()
    lock = None
    if options.lock is not None:
        os.set_inheritable(options.lock, False)
        lock = FileIO(options.lock, "a")
    if not follow(options.root.resolve(), options.experiment, options.runner, lock):
        print(f"{options.root} has a follower already")


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # everything is stored; MLflow takes its time to end
