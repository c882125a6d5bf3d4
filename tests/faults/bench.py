"""What a case works with: its folder, the project of a command in it, and the questions that every case asks."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.faults.base import JOBS, Base, copied, start, synchronise
from tests.faults.oracle import Left
from tests.faults.processes import ENDING, LONGEST, Running, belonging, until

WRITTEN = "is there already"  # says `export` of a folder that is whole; it was ended after its last write
Moment = int | float  # the number of an event of files, or a share of the seconds of processors
Problems = Iterator[str]


@dataclass
class Bench:
    """The place of one case.

    Args:
        base: of the commands.
        folder: of the case alone.
    """

    base: Base
    folder: Path
    late: bool = False  # the command had ended before it could be disturbed

    def project(self, job: str, name: str = "project") -> Path:
        """A new project in the state that the command begins from."""
        copied(self.base.before(job), self.folder / name, JOBS[job].changes)
        return self.folder / name

    def start(self, job: str, place: Path, last: int | None = None, **variables: str) -> Running:
        return start(job, place, self.printed(job), last, **variables)

    def printed(self, name: str) -> Path:
        return self.folder / f"printed-{name}-{len(list(self.folder.glob('printed-*')))}"

    def disturbed(
        self, job: str, place: Path, moment: Moment, act: Callable[[Running], object], **variables: str
    ) -> Running:
        """A command to which something is done at a moment; it may still run. An event of files can only kill it."""
        if isinstance(moment, int):
            running = self.start(job, place, moment, **variables)
            running.wait()
            self.late = running.status != -signal.SIGKILL
            return running
        running = self.start(job, place, **variables)
        self.at(running, moment * self.base.control(job).seconds, act)
        return running

    def at(self, running: Running, seconds: float, act: Callable[[Running], object]) -> None:
        """Do something to a process once it has used so many seconds of processors."""
        until(lambda: running.seconds() >= seconds or not running.runs(), LONGEST)
        self.late = not running.runs()
        if not self.late:
            act(running)

    def begun(self, running: Running, place: Path, job: str) -> float:
        """The seconds of processors that a command has used when it opens its journal: the work begins."""
        until(lambda: bool(list(place.glob(f".pipeline/tracking/{job}-*.jsonl"))) or not running.runs(), LONGEST)
        return running.seconds()

    def alone(self, place: Path, seconds: float = ENDING) -> Problems:
        """Whether all processes of a project end within some seconds."""
        if not until(lambda: not list(belonging(place)), seconds):
            for process in belonging(place):
                with contextlib.suppress(Exception):
                    yield f"still runs: {' '.join(process.cmdline())[-120:]}"

    def again(self, job: str, place: Path, uri: str = "", **variables: str) -> Problems:
        """Whether the same command, given again, leaves what an undisturbed one does."""
        running = self.start(job, place, **variables)
        if running.wait() and WRITTEN not in last_words(running):
            yield f"the same command again ends with {running.status}: {last_words(running)}"
            return
        yield from self.alone(place)
        yield from self.same(job, place, uri)

    def same(self, job: str, place: Path, uri: str = "", database: Path | None = None) -> Problems:
        """Whether a project holds what an undisturbed command leaves, once all records are in MLflow."""
        yield from synchronised(place, uri)
        yield from self.base.control(job).left.differences(Left.of(place, database))


def synchronised(place: Path, uri: str = "") -> Problems:
    try:
        synchronise(place, uri)
    except RuntimeError as error:
        yield f"the records cannot be brought to MLflow: {str(error)[-300:]}"


def last_words(running: Running) -> str:
    """The last line that a command printed, without the remark on tracebacks."""
    lines = [line for line in running.said().splitlines() if line.strip() and not line.startswith("(PIPELINE")]
    return lines[-1][:300] if lines else "nothing"


def in_one_line(running: Running) -> Problems:
    """Whether a command that failed says why in one line."""
    if "Traceback" in running.said():
        yield f"a traceback: {last_words(running)}"
    elif not re.search(r"^error: .*\w", running.said(), re.MULTILINE):
        yield f"no line with the error: {last_words(running)}"


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A folder that is a disk of its own, in memory, whose size `resize` sets."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1g", "faults", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def resize(disk: Path, size: int | None) -> None:
    """Give a disk this size in bytes; None for more than enough."""
    given = "1g" if size is None else str(size)
    subprocess.run(["mount", "-o", f"remount,size={given}", disk], check=True)


def occupied(disk: Path) -> int:
    state = os.statvfs(disk)
    return (state.f_blocks - state.f_bfree) * state.f_frsize


def unmountable() -> str:
    """Why no disk can be made; empty if one can."""
    return "" if os.getuid() == 0 else "needs root, who may mount a small disk"


def unmounted(folder: Path) -> None:
    """Remove the disks that killed cases have left in a folder."""
    mounted = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for place in mounted:
        if place.startswith(f"{folder}/"):
            subprocess.run(["umount", "--lazy", place], check=False)
