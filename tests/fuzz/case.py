"""Tries a command on a damaged file, in a process with limits, and judges what it did."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.workflow import process
from tests.fuzz import commands
from tests.fuzz.damage import Recipe, damage
from tests.fuzz.kinds import Kind, ingested
from tests.project import Project

SECONDS = 10.0  # of processors that a command may take longer than with the undamaged file
WAITING = 60.0  # seconds that it may take by the clock; other work on the machine counts
SLACK = 64 << 20  # bytes of memory that a command may take more, besides twice the file
ADDRESSES = 8 << 30  # bytes of address space more than at the start
OUTPUT = 64 << 20  # bytes of the largest file that a command may write
FORBIDDEN, ENDED = 97, 98  # status of a process that did what no command may do, or that could not begin
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
PROGRAMS = ("git", "uname", "sh")  # that a command may start

Verdict = Literal["refused", "harmless", "other", "failed"]


@dataclass
class Outcome:
    """What a command did with a damaged file.

    Args:
        verdict: "refused" in one line that names the file; "harmless", the results are those of the undamaged file;
            "other", the file says something else, and the command did that; or "failed".
        why: it failed.
        said: by the command.
        seconds, memory: that it took, of processors; bytes of memory besides those at its start.
    """

    verdict: Verdict
    why: str
    said: str
    seconds: float
    memory: int


class Case:
    """A command that reads a damaged file.

    Args:
        kind: of the file.
        recipe: of the damage; None for none.
        base: folder of the undamaged files.
        folder: to work in; removed by `end`.
    """

    def __init__(self, kind: Kind, recipe: Recipe | None, base: Path, folder: Path) -> None:
        self.kind, self.recipe, self.folder = kind, recipe, folder
        project = folder / "project"
        shutil.copytree(base, project, symlinks=True)
        (folder / "tmp").mkdir()
        self.project = object.__new__(Project)
        self.project.folder = project
        self.project.give(**kind.changes)
        (file,) = project.glob(kind.file)
        self.file, self.size, self.content = file, 0, file.read_bytes()
        if recipe is not None:
            kind.made[recipe[1]](file) if recipe[0] == "made" else damage(file, recipe)
            self.size = file.stat().st_size if file.is_file() else 0
        self.before = _digests(project)
        self.began, self._memory = time.monotonic(), _memory()[1]
        self.pid = os.fork()
        if not self.pid:
            self._run()

    def _run(self) -> None:
        """The process of the command; does not return."""
        status = ENDED
        try:
            os.setsid()
            _limit()
            with (self.folder / "said").open("wb") as said:
                for stream in (1, 2):
                    os.dup2(said.fileno(), stream)
            tempfile.tempdir = str(self.folder / "tmp")
            run = getattr(commands, self.kind.stage, None)
            module = commands if run else importlib.import_module(f"stages.{self.kind.stage}")
            with self.project.inside() as patch:
                patch.setattr(sys, "argv", [self.kind.stage, *self.kind.words])
                _watch(self.folder)
                module.main() if hasattr(module, "main") else process.main(run or module.run, arguments=True)
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)

    def ended(self) -> tuple[int, float, int] | None:
        """Status, seconds of processors, and bytes of memory besides those at the start, once it has ended; a late one
        is killed."""
        pid, status, used = os.wait4(self.pid, os.WNOHANG)
        seconds = time.monotonic() - self.began
        if pid:
            self.pid = 0
            seconds = used.ru_utime + used.ru_stime
            return os.waitstatus_to_exitcode(status), seconds, (used.ru_maxrss << 10) - self._memory
        if seconds > WAITING:
            self.kill()
            return -signal.SIGALRM, seconds, 0
        return None

    def kill(self) -> None:
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0

    def said(self) -> str:
        file = self.folder / "said"
        return file.read_text("utf-8", "replace")[-20_000:] if file.exists() else ""

    def outputs(self) -> dict[str, str]:
        """Checksums of the files that show what the command made of its input."""
        files = {path for pattern in self.kind.outputs for path in self.project.folder.glob(pattern) if path.is_file()}
        return {str(path.relative_to(self.project.folder)): _digest(path) for path in sorted(files)}

    def end(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass
class Control:
    """What a command does with the undamaged file."""

    outputs: dict[str, str]
    content: bytes
    seconds: float
    memory: int


def judged(case: Case, control: Control, status: int, seconds: float, memory: int) -> Outcome:
    """What the command did, now that it has ended."""
    said = case.said()

    def outcome(verdict: Verdict, why: str = "") -> Outcome:
        return Outcome(verdict, why, said, seconds, memory)

    if status == -signal.SIGALRM or seconds > control.seconds * 2 + SECONDS:
        return outcome("failed", f"it took {seconds:.0f} s and more")
    if memory > control.memory + 2 * case.size + SLACK:
        more = (memory - control.memory) >> 20
        return outcome("failed", f"it took {more:,} MiB more than with the undamaged file, for {case.size:,} bytes")
    if status == FORBIDDEN:
        return outcome("failed", "it did what it must not")
    if "Traceback" in said or status not in (0, 1):
        return outcome("failed", f"it ended with status {status}")
    if status == 1:
        return outcome(*_refused(case, said))
    if case.outputs() == control.outputs:
        return outcome("harmless")
    if case.kind.warns and case.file.name in said:
        return outcome("refused")
    return outcome(*_accepted(case, control))


def _refused(case: Case, said: str) -> tuple[Verdict, str]:
    lines = said.rstrip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    if len(errors) != 1 or errors[0] not in lines[-2:]:
        return "failed", "its error is not one line"
    if not any(name in errors[0] for name in (case.file.name, case.kind.pair) if name):
        return "failed", "its error does not name the file"
    if "too little memory" in errors[0]:
        return "failed", "it wants memory that the file does not need"
    if len(errors[0]) > 2000:
        return "failed", f"its error has {len(errors[0]):,} characters"
    if _digests(case.project.folder) != case.before:
        return "failed", "it was refused, but wrote a file"
    return "refused", ""


def _accepted(case: Case, control: Control) -> tuple[Verdict, str]:
    """The verdict on results that differ from those of the undamaged file."""
    try:
        if case.kind.read is not None:
            expected, found = case.kind.read(case.file), ingested(case.project.folder)
            differ = [name for name in expected if repr(found.get(name)) != repr(expected[name])]
            return ("failed", f"another reader finds other values in {', '.join(differ)}") if differ else ("other", "")
        if case.kind.meaning is not None:
            says, said = case.kind.meaning(case.file.read_bytes()), case.kind.meaning(control.content)
            return ("other", "") if repr(says) != repr(said) else ("failed", "the same file gives other results")
    except Exception as error:
        return "failed", f"it was accepted, but another reader refuses it ({type(error).__name__}: {error})"[:300]
    return "failed", "it was accepted, and the results are others"


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _digests(folder: Path) -> dict[str, str]:
    """Of the outputs in a folder; what is no file, e.g. a pipe, is only named."""
    files = (path for path in (folder / "artifacts").rglob("*") if not path.is_dir() and "runs" not in path.parts)
    return {str(path): _digest(path) if path.is_file() and not path.is_symlink() else "" for path in files}


def _memory() -> tuple[int, int]:
    """Bytes of address space and of memory of this process."""
    space, resident = Path("/proc/self/statm").read_text().split()[:2]
    return int(space) * resource.getpagesize(), int(resident) * resource.getpagesize()


def _limit() -> None:
    most = _memory()[0] + ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_FSIZE, (OUTPUT, OUTPUT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _watch(folder: Path) -> None:
    """End this process as soon as it unpickles a class, starts another program, or writes outside of a folder."""
    inside = str(folder.resolve())

    def refuse(what: str) -> None:
        os.write(2, f"forbidden: {what}\n".encode())
        os._exit(FORBIDDEN)

    def check(event: str, words: tuple[Any, ...]) -> None:
        if event == "pickle.find_class":
            refuse(f"unpickles {words[0]}.{words[1]}")
        elif event in ("os.system", "os.exec", "os.posix_spawn", "socket.connect", "socket.getaddrinfo"):
            refuse(f"{event} {words}")
        elif event == "subprocess.Popen" and Path(str(words[0])).name not in PROGRAMS:
            refuse(f"starts {words[:2]}")
        elif event == "open" and isinstance(words[0], str | bytes) and (words[2] or 0) & WRITING:
            path = os.path.abspath(os.fsdecode(words[0]))  # noqa: PTH100
            if not path.startswith((inside, "/dev/null", "/dev/shm")):
                refuse(f"writes {path}")

    sys.addaudithook(check)
