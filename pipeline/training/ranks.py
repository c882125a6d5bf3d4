"""The processes of one training: started by torchrun, or beside the stage that trains; and how they end.

They tell each other apart by the variables of torchrun: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT.
All of them run the same command. The first one, of rank 0, alone writes files, keeps records and prints.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from multiprocessing import connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import torch
from torch import distributed

from pipeline.data.share import Share
from pipeline.workflow import process
from pipeline.workflow.workers import start_server

PATIENCE = timedelta(minutes=30)  # that a process waits for the others, e.g. while the first one saves a model
GRACE_SECONDS = 10.0  # for the first process to notice the end of another one; NCCL may never return
VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")
REMEDY = "what is finished and the last checkpoint are kept, and the same command goes on from there"
Other = tuple[ForkServerProcess, connection.Connection]  # a process, and what it says last


def rank() -> int:
    """The number of this process among those of a training; 0 if it is alone."""
    return int(os.environ.get("RANK", 0))


def first() -> bool:
    """Whether this process writes the files and keeps the records."""
    return rank() == 0


def number() -> int:
    """The number of processes of a training."""
    return int(os.environ.get("WORLD_SIZE", 1))


def device() -> int:
    """The number of the GPU of this process."""
    return int(os.environ.get("LOCAL_RANK", 0))


def share() -> Share | None:
    """The share of this process in a training, which joins the others at the first call; None if it is alone.

    Raises:
        ValueError: if this machine has fewer GPUs than processes.
        ConnectionError: if the others do not come.
    """
    if number() == 1:
        return None
    if not distributed.is_initialized():
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
        gpus, here = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        if 0 < gpus < here:
            raise ValueError(f"there are {gpus} GPUs for {here} processes; start at most one process for each GPU")
        if gpus:
            torch.cuda.set_device(device())
        try:
            distributed.init_process_group("nccl" if gpus else "gloo", timeout=PATIENCE)
        except RuntimeError as error:
            raise ConnectionError(f"the processes of this training do not find each other: {error}") from error
    return Share(rank(), number())


def wait_for_all() -> None:
    """Wait until all processes of the training are here."""
    if (own := share()) is not None:
        own.sum(torch.zeros(1, device=device() if torch.cuda.is_available() else "cpu"))


@contextlib.contextmanager
def together(run: Callable[[], object], devices: int, setting: str) -> Iterator[None]:
    """Within the block, ``run`` also runs in other processes, so that there are ``devices`` with this one, the first.

    Nothing happens if ``devices`` is 1, or if torchrun, or this function, has started this process. The others end with
    the block, with this process, and if one of them ends with an error.

    Args:
        run: a function of a module; in the others it meets this function again.
        devices: number of processes.
        setting: name of the parameter, for messages.

    Raises:
        ValueError: if another process has ended with an error or was killed.
    """
    try:
        if devices == 1 or "RANK" in os.environ:
            yield
            return
        saved = {name: os.environ.get(name) for name in VARIABLES}
        others: list[Other] = []
        left = threading.Event()
        try:
            others = _start(run, devices)
            threading.Thread(target=_watch, args=(others, setting, left), daemon=True).start()
            yield
            for other, _ in others:  # they come to the same end; to stop them before would leave their locks behind
                other.join(GRACE_SECONDS)
        except ConnectionError as error:
            left.set()
            raise ValueError(_why(others, setting) or str(error)) from error
        finally:
            left.set()
            _end(others)
            for name, value in saved.items():
                os.environ.pop(name, None) if value is None else os.environ.update({name: value})
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def _start(run: Callable[[], object], devices: int) -> list[Other]:
    process.share_cores(devices)
    start_server("pipeline.training.loop")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    number = str(devices)
    os.environ.update(WORLD_SIZE=number, LOCAL_WORLD_SIZE=number, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    context = multiprocessing.get_context("forkserver")
    others: list[Other] = []
    for other in range(1, devices):
        ours, theirs = context.Pipe(duplex=False)
        environment = {name: os.environ[name] for name in VARIABLES if name in os.environ}
        environment |= {"RANK": str(other), "LOCAL_RANK": str(other)}
        started = context.Process(target=_run, args=(run, environment, theirs, os.getpid(), str(Path.cwd())))
        started.start()
        theirs.close()
        others.append((started, ours))
    os.environ.update(RANK="0", LOCAL_RANK="0")
    return others


def _run(
    run: Callable[[], object], environment: Mapping[str, str], pipe: connection.Connection, parent: int, folder: str
) -> None:
    """The life of another process than the first one. It has nothing to save, so it may end at any time."""
    os.environ.update(environment)
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process answers Ctrl-C
    process.end_with(parent, signal.SIGKILL)  # no other signal ends a process that waits for a GPU
    try:
        run()
    except (ValueError, OSError, MemoryError) as error:
        pipe.send(" ".join(str(error).split()) or type(error).__name__)  # the first one reports it, if it is the cause
        sys.exit(1)


def _why(others: Sequence[Other], setting: str) -> str | None:
    """Why another process has ended, if one has; the first cause, where others have lost it in turn."""
    connection.wait([other.sentinel for other, _ in others], GRACE_SECONDS)
    reasons = []
    for other_rank, (other, pipe) in enumerate(others, 1):
        other.join(1.0)
        if not other.exitcode:
            continue
        told = f"was killed (exit code {other.exitcode}); there may be too little memory for {setting} processes"
        if other.exitcode > 0:
            told = "ended with the error above"
            with contextlib.suppress(EOFError, OSError):
                told = f"ended with an error: {pipe.recv()}" if pipe.poll() else told
        lost = "another process of this training has ended" in told
        reasons.append((lost, f"process {other_rank} of the training {told}; {REMEDY}"))
    return min(reasons)[1] if reasons else None


def _watch(others: Sequence[Other], setting: str, left: threading.Event) -> None:
    """End this process if another one has ended with an error, and this one does not notice."""
    running = [other for other, _ in others]
    while running and not left.is_set():
        connection.wait([other.sentinel for other in running], 1.0)
        ended = [other for other in running if other.exitcode is not None]
        running = [other for other in running if other not in ended]
        for other in ended:
            if other.exitcode and not left.wait(GRACE_SECONDS):
                print(f"error: {_why(others, setting)}", file=sys.stderr, flush=True)
                os._exit(1)


def _end(others: Sequence[Other]) -> None:
    for other, pipe in others:
        other.terminate()
        other.join(GRACE_SECONDS)
        other.kill()
        other.join()
        pipe.close()
