"""Worker processes: start them quickly, end them with their parent, and receive what they send."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection, forkserver
from pathlib import Path
from typing import Any

from pipeline.workflow import process

Send = Callable[[Any], None]


def start_server(module: str) -> None:
    """Start the process from which workers are forked. It imports ``module`` and the stages once for all workers."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(["stages", module])
    forkserver.ensure_running()


def run_jobs(
    work: Callable[[Any, Send], None], jobs: Sequence[Any], workers: int, remedy: str
) -> Iterator[tuple[int, Any]]:
    """Run ``work(job, send)`` for every job, each in a process of its own, and yield what the jobs send.

    The jobs start in their order. All processes end with this one, and also if the caller stops asking.

    Args:
        work: a function of a module; it must pickle, like the jobs.
        jobs: arguments of ``work``.
        workers: number of processes at the same time.
        remedy: for the message if a process is killed.

    Yields:
        (number of the job, what it has sent).

    Raises:
        ValueError: if a process ends with an error, which it has printed, or is killed.
    """
    context = multiprocessing.get_context("forkserver")
    waiting = list(enumerate(jobs))[::-1]
    running: dict[connection.Connection, tuple[int, Any]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                number, job = waiting.pop()
                ours, theirs = context.Pipe(duplex=False)
                worker = context.Process(target=_work, args=(work, job, theirs, os.getpid(), str(Path.cwd())))
                running[ours] = number, worker
                worker.start()
                theirs.close()  # so that the end of the worker closes the pipe
            for pipe in connection.wait(list(running)):
                assert isinstance(pipe, connection.Connection)
                number, worker = running[pipe]
                try:
                    sent = pipe.recv()
                except (EOFError, OSError):  # OSError: it ended in the middle of a message
                    worker.join()
                    if worker.exitcode:
                        raise _failed(worker.exitcode, remedy) from None
                    del running[pipe]
                else:
                    yield number, sent
    finally:
        for _, worker in running.values():
            if worker.pid is not None:
                worker.terminate()
                worker.join()


def _failed(exitcode: int, remedy: str) -> ValueError:
    if exitcode == 1:
        return ValueError("a worker has ended with the error above")
    return ValueError(f"a worker was killed (exit code {exitcode}); {remedy}")


def _work(work: Callable[[Any, Send], None], job: Any, pipe: connection.Connection, parent: int, folder: str) -> None:
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent answers Ctrl-C
    process.end_with(parent)
    process.main(lambda: work(job, pipe.send), arguments=True)  # the command line belongs to the parent
