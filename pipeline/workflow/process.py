"""The process of a stage: its threads, its log on the console, an orderly end, and one-line reports of bad input."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import platform
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import psutil

from pipeline.workflow.code import ROOT
from pipeline.workflow.params import FILE, declared
from pipeline.workflow.places import RAW
from pipeline.workflow.reference import as_text, entries
from pipeline.workflow.yaml_values import read_yaml

POLL_SECONDS = 1.0
WATCHED = "PIPELINE_ENDS_WITH"  # environment variable: "pid:start time" of a process; this one ends when it ends
NO_MEMORY = "can't allocate memory"  # in an error of torch
NOT_WRITTEN = "inline_container.cc"  # in an error of torch's writer of files, which does not say why
OS_REMEDIES = {
    errno.ENOSPC: "free some space, and run the same command again",
    errno.EDQUOT: "free some space, and run the same command again",
    errno.EFBIG: "raise the limit of the size of files (ulimit -f), and run the same command again",
    errno.EMFILE: "raise the limit of open files (ulimit -n), and run the same command again",
    errno.EACCES: "give this user the right to it, and run the same command again",
    errno.EPERM: "give this user the right to it, and run the same command again",
    errno.EROFS: "give this user the right to it, and run the same command again",
}
BEGIN, END = 700, 300  # characters of a longer message that are shown: the place, and the remedy
MMAP_THRESHOLD, TRIM_THRESHOLD, TOP_PAD = -3, -1, -2  # options of glibc's mallopt


def cores() -> int:
    """Number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_cores(workers: int) -> None:
    """Divide the cores among workers: set the number of threads of this process and of those that it starts."""
    os.environ["OMP_NUM_THREADS"] = str(max(1, cores() // workers))


def tune() -> None:
    """Use one thread for each core unless the user sets OMP_NUM_THREADS, and keep freed memory for reuse.

    Call it before torch is imported. By default, glibc returns large blocks to the system at once, and the buffers of
    the next step cost a page fault for every 4 KiB.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(cores()))
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL("libc.so.6")
        for option, value in ((MMAP_THRESHOLD, 1 << 25), (TRIM_THRESHOLD, 1 << 28), (TOP_PAD, 1 << 26)):
            libc.mallopt(option, value)


class Console(logging.Handler):
    """Bare messages: progress and results to stdout, warnings and errors to stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        print(self.format(record), file=stream, flush=True)


def show_log() -> None:
    """Show the log records of the project on the console, as its commands do; a library leaves that to its user."""
    log = logging.getLogger("pipeline")
    log.setLevel(logging.INFO)
    if not any(isinstance(handler, Console) for handler in log.handlers):
        log.addHandler(Console())


def main(run: Callable[[], object], arguments: bool = False, kept: str = "nothing was written") -> None:
    """Run a stage: show its log, end when DVC ends, end in order on Ctrl-C and SIGTERM, report bad input in one line.

    Args:
        run: the stage.
        arguments: whether the stage takes command-line arguments. If not, only --help is one.
        kept: what Ctrl-C leaves, as a sentence without a full stop.
    """
    if sys.argv[1:] and not arguments:
        if sys.argv[1:] in (["--help"], ["-h"]):
            print(_help())
            sys.exit(0)
        words = " ".join(sys.argv[1:])
        sys.exit(f"error: this stage takes no arguments, got {words}; its parameters are in params.yaml, see --help")
    show_log()
    signal.signal(signal.SIGTERM, _terminate)
    watched = [*_dvc_ancestors(), *_named_process()]
    if watched:
        threading.Thread(target=_end_with, args=(watched,), daemon=True).start()
    try:
        _check_checkout()
        run()
    except (KeyboardInterrupt, SystemExit) as error:
        if isinstance(error, SystemExit) and not isinstance(error.__context__, KeyboardInterrupt):
            raise
        print(f"interrupted: {kept}", file=sys.stderr)  # Lightning turns Ctrl-C into SystemExit
        sys.exit(128 + signal.SIGINT)
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and NO_MEMORY not in str(error) and NOT_WRITTEN not in str(error):
            raise
        if os.environ.get("PIPELINE_TRACEBACK"):
            traceback.print_exc()
        print(f"error: {_message(error)}\n(PIPELINE_TRACEBACK=1 shows the traceback)", file=sys.stderr)
        sys.exit(1)


def _help() -> str:
    """The text of a stage and, in a folder with a params.yaml, its parameters with their values and meanings."""
    stage = sys.modules["__main__"]
    about = (stage.__doc__ or "").strip()
    if not FILE.is_file() or stage.__spec__ is None:
        return about
    shown = as_text(entries(read_yaml(FILE), declared(stage.__spec__.name.rpartition(".")[2])))
    return f"{about}\n\nParameters, with their values in {FILE}:\n\n{shown}" if shown else about


def _message(error: Exception) -> str:
    """The message of an error in one line, with a remedy for what is not the fault of an input."""
    text = " ".join(str(error).split())
    if isinstance(error, RuntimeError) and NOT_WRITTEN in text:
        return f"a file of tensors cannot be written or read whole; {OS_REMEDIES[errno.ENOSPC]}"
    if isinstance(error, MemoryError | RuntimeError):
        return f"there is too little memory ({text or type(error).__name__}); docs/faults.md says what takes less"
    if isinstance(error, FileNotFoundError) and Path(str(error.filename)).parts[:1] == RAW.parts[:1]:
        return f"there is no {error.filename}; run `dvc repro`, which makes it"
    if isinstance(error, FileNotFoundError) and str(error.filename) == str(FILE):
        return f"there is no {FILE} in {Path.cwd()}; run the command in the folder of the project"
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        remedy = f"; {OS_REMEDIES[error.errno]}" if error.errno in OS_REMEDIES else ""
        return f"{place}{error.strerror.lower()}{remedy}"
    return text if len(text) <= BEGIN + END else f"{text[:BEGIN]} ... {text[-END:]}"


def _check_checkout() -> None:
    """Raise an error if the code of one checkout runs in another one, which an editable installation can cause."""
    here = Path.cwd().resolve()
    for folder in (here, *here.parents):
        if (folder / "dvc.yaml").is_file() and (folder / "pipeline/workflow").is_dir():
            if (folder / "pipeline").resolve() != ROOT / "pipeline":
                raise ValueError(
                    f"the code of {ROOT} is about to run in {folder}, which has its own; set PYTHONPATH={folder}, or "
                    "install that checkout"
                )
            return


def _terminate(signum: int, frame: FrameType | None) -> None:
    sys.exit(128 + signum)


def _dvc_ancestors() -> list[tuple[int, float]]:
    """(pid, start time) of the processes between this one and the dvc that started it, dvc included.

    Raises:
        SystemExit: if dvc has ended while this process was starting.
    """
    if "DVC_STAGE" not in os.environ:
        return []
    chain = []
    parents = psutil.Process().parents()
    if parents and _adopts(parents[0]):
        sys.exit(128 + signal.SIGTERM)
    for parent in parents:
        chain.append((parent.pid, parent.create_time()))
        with contextlib.suppress(psutil.Error):
            if any("dvc" in Path(word).name for word in parent.cmdline()[:3]):
                return chain
    return chain[:1]


def _adopts(parent: psutil.Process) -> bool:
    """Whether a process is this one's parent because the one that started it has ended. Such a process is the first one
    of the machine, or systemd, and has not opened the session of this one."""
    with contextlib.suppress(psutil.Error, OSError):
        adopter = parent.pid == 1 or parent.name() == "systemd"
        return adopter and os.getsid(parent.pid) != os.getsid(0)
    return False


def this_process() -> str:
    """The value of `WATCHED` that makes another process end with this one."""
    return f"{os.getpid()}:{psutil.Process().create_time()}"


def _named_process() -> list[tuple[int, float]]:
    pid, _, started = os.environ.get(WATCHED, "").partition(":")
    return [(int(pid), float(started))] if started else []


def end_with(pid: int, by: signal.Signals = signal.SIGTERM) -> None:
    """End this process by a signal when the process with this id ends."""
    try:
        watched = [(pid, psutil.Process(pid).create_time())]
    except psutil.NoSuchProcess:
        sys.exit(1)
    threading.Thread(target=_end_with, args=(watched, by), daemon=True).start()


def _end_with(watched: list[tuple[int, float]], by: signal.Signals = signal.SIGTERM) -> None:
    """Send this process a signal when a watched process has ended.

    SIGTERM to dvc does not reach the stage that it runs; without this, the stage would continue unrecorded.
    """
    while True:
        time.sleep(POLL_SECONDS)
        for pid, started in watched:
            try:
                alive = psutil.Process(pid).create_time() == started
            except psutil.NoSuchProcess:
                alive = False
            if not alive:
                os.kill(os.getpid(), by)
                return
