"""The follower: one process per repository and store that uploads journals to MLflow while stages write them.

    python -m pipeline.tracking.follow ROOT EXPERIMENT

MLflow needs 100 microseconds of interpreter time per point. The follower is a process, since a thread would take this
time from training. It is detached, since it outlives a killed stage and marks its runs as KILLED. The follower holds a
lock while it runs. A tracker tries to take the lock; if it succeeds, no follower runs, and the tracker starts one that
inherits the lock. The follower ends when every journal is uploaded or refused, and the process that runs the stages
has ended or has started no stage for `LINGER_SECONDS`.
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

LOOK_SECONDS = 0.2  # between two checks of the folder
PASS_SECONDS = 5.0  # between two uploads of growing journals: many points of one series are cheaper to store together
RETRY_SECONDS = 15.0  # between two attempts while the store fails or refuses a journal
LINGER_SECONDS = 20.0  # that an idle follower waits for the next stage, while the process that runs the stages lives
STARTS = 3  # attempts to start a follower, if it ends before the journal has arrived

log = logging.getLogger("pipeline.tracking")


class Follower:
    """A tracker's handle on the follower: starts it, waits for it, and reads its state file.

    Args:
        root: the repository.
        experiment: name of the experiment in MLflow.
    """

    def __init__(self, root: Path, experiment: str) -> None:
        self.destination = destination(root, experiment)
        self._root, self._experiment = root, experiment
        self._lock = folder(root) / f"follow-{self.destination}.lock"
        self._state = folder(root) / f"follow-{self.destination}.json"

    def take(self) -> FileIO | None:
        """Take the lock of the follower. Returns the open lock file, or None if a follower runs."""
        self._lock.parent.mkdir(parents=True, exist_ok=True)
        lock = FileIO(self._lock, "a")
        if lock_now(lock):
            return lock
        lock.close()
        return None

    def start(self) -> bool:
        """Start the follower unless it runs. Returns whether this call started it."""
        lock = self.take()
        if lock is None:
            return False
        package = str(Path(__file__).parents[2])
        path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
        command = [sys.executable, "-P", "-m", "pipeline.tracking.follow", str(self._root), self._experiment]
        command += ["--runner", str(os.getppid()), "--lock", str(lock.fileno())]
        with lock:  # the follower inherits the lock and holds it until it ends
            self._state.unlink(missing_ok=True)
            try:
                subprocess.run(
                    ["sh", "-c", '"$@" >/dev/null 2>&1 </dev/null &', "sh", *command],  # not a child of this process
                    cwd="/",
                    env={**os.environ, "PYTHONPATH": path},
                    start_new_session=True,  # Ctrl-C must reach the stage alone
                    pass_fds=[lock.fileno()],
                    check=True,
                )
            except (OSError, subprocess.SubprocessError) as error:  # training goes on without it
                log.warning("cannot start the process that uploads records to MLflow: %s", error)
        return True

    def wait(self, journal: Path, seconds: float | None = None) -> None:
        """Wait until the store has a journal or refuses it; restart the follower if it has ended.

        Args:
            journal: path of a journal without a writer.
            seconds: longest time to wait; None waits without a limit.
        """
        began = shown = time.monotonic()
        starts = 0
        while not has_arrived(journal, self.destination) and not self._refusal(journal):
            now = time.monotonic()
            if seconds is not None and now - began > seconds:
                return
            if starts == STARTS:
                command = f"python -m pipeline.tracking.follow {self._root} {self._experiment}"
                log.warning("the process that uploads records to MLflow does not run; `%s` shows why", command)
                return
            starts += self.start()
            if now - shown > 2:
                shown, left = now, self._read().get("left")
                progress = f", {left:,} points left" if left else ""
                log.info("tracking: uploading the journal to MLflow, %.0f s%s", now - began, progress)
            time.sleep(0.05)

    def warnings(self, journal: Path) -> list[str]:
        """Warnings for the user: why this journal has not arrived, and which journals cannot be read.

        Args:
            journal: path of the journal.
        """
        return [*filter(None, [self._refusal(journal)]), *self._read().get("unreadable", [])]

    def tell(self, **state: Any) -> None:
        """Write the state file. Only the follower's own process calls this.

        Args:
            left: number of points still to be uploaded from the current journal.
            refusal: why the store does not answer, or None.
            refused: name of a journal -> why the store refuses it.
            unreadable: one message per journal that cannot be read.
        """
        draft = self._state.with_suffix(".draft")
        with contextlib.suppress(OSError):  # full disk: trackers miss the state, but records still arrive
            draft.write_text(json.dumps(state))
            draft.replace(self._state)

    def _refusal(self, journal: Path) -> str | None:
        state = self._read()
        return state.get("refusal") or state.get("refused", {}).get(journal.name)

    def _read(self) -> dict[str, Any]:
        try:
            return json.loads(self._state.read_text())
        except FileNotFoundError:  # the follower has just started
            return {}


class _Loop:
    """The loop of the follower's process. It needs the lock of the follower."""

    def __init__(self, root: Path, experiment: str, runner: int) -> None:
        self._follower = Follower(root, experiment)
        self._inbox = Inbox(root, experiment, follow=True, progress=self._write_state)
        self._runner = runner
        self._refusal: str | None = None

    def run(self) -> None:
        """Upload journals until the follower may end; see the top of this file."""
        self._write_state()
        due, busy = 0.0, time.monotonic()
        while True:
            now, waiting = time.monotonic(), self._inbox.waiting()
            urgent = any(
                (not written or self._inbox.is_new(path)) and self._may_be_accepted(path) for path, written in waiting
            )
            if waiting and (urgent or now >= due):
                self._upload()
                due = time.monotonic() + (RETRY_SECONDS if self._refusal or self._inbox.refused else PASS_SECONDS)
            elif self.is_left(waiting):
                busy = now
            elif now - busy > LINGER_SECONDS or not psutil.pid_exists(self._runner):
                return
            time.sleep(LOOK_SECONDS)

    def is_left(self, waiting: list[tuple[Path, bool]] | None = None) -> bool:
        """Whether there is work: a stage writes a journal, or the store may accept one that waits.

        Args:
            waiting: result of `Inbox.waiting`; read again if left out.
        """
        waiting = self._inbox.waiting() if waiting is None else waiting
        return any(written or self._may_be_accepted(path) for path, written in waiting)

    def _may_be_accepted(self, path: Path) -> bool:
        return self._refusal is None and path.name not in self._inbox.refused

    def _upload(self) -> None:
        try:
            for line in self._inbox.bring_in():
                print(line, flush=True)
            self._refusal = None
        except StoreError as error:
            self._refusal = str(error)
        self._write_state()

    def _write_state(self, left: int = 0) -> None:
        unreadable = list(self._inbox.unreadable.values())
        self._follower.tell(left=left, refusal=self._refusal, refused=self._inbox.refused, unreadable=unreadable)


def follow(root: Path, experiment: str, runner: int, lock: FileIO | None = None) -> bool:
    """Upload journals to the store while stages write them, until none is left.

    Args:
        root: the repository.
        experiment: name of the experiment in MLflow.
        runner: id of the process that runs the stages, e.g. dvc.
        lock: the lock of the follower, if this process holds it already.
    Returns:
        False if another follower runs.
    """
    follower, work = Follower(root, experiment), _Loop(root, experiment, runner)
    lock = lock or follower.take()
    if lock is None:
        return False
    os.nice(10)
    while lock:
        with lock:
            work.run()
        # a tracker that began before the lock was released did not start a follower: its journal is work for this one
        lock = follower.take() if work.is_left() else None
    return True


def main() -> None:
    """Run the follower from the command line."""
    parser = ArgumentParser(prog="python -m pipeline.tracking.follow", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("root", type=Path, help="the repository")
    parser.add_argument("experiment", help="name of the experiment in MLflow")
    parser.add_argument("--runner", type=int, default=os.getppid(), help="id of the process that runs the stages")
    parser.add_argument("--lock", type=int, help="file descriptor of the inherited lock")
    options = parser.parse_args()
    lock = None
    if options.lock is not None:
        os.set_inheritable(options.lock, False)
        lock = FileIO(options.lock, "a")
    if not follow(options.root.resolve(), options.experiment, options.runner, lock):
        print(f"a follower of {options.root} is running already")


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # all records are stored; skip the slow shutdown of MLflow
