"""Threads that share the encoder's work, and its progress bars."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import pyarrow as pa
from tqdm import tqdm

from pipeline.workflow.progress import progress

THREADS = 8  # at most; each has a row group in memory
A = TypeVar("A")
B = TypeVar("B")


def progress_bar(title: str, total: int, unit: str) -> tqdm:
    """A progress bar of the encoder."""
    return progress(desc=f"encode {title}", total=total, unit=unit, unit_scale=True)


def workers() -> int:
    """Number of threads."""
    return min(THREADS, pa.cpu_count())


@contextlib.contextmanager
def thread_pool() -> Iterator[ThreadPoolExecutor]:
    """A pool of `workers` threads. Work that has not started at the end of the block is cancelled."""
    pool = ThreadPoolExecutor(workers())
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def in_order(pool: ThreadPoolExecutor, function: Callable[[A], B], items: Iterable[A], bar: tqdm) -> Iterator[B]:
    """The results of ``function`` for all items, in order; at most `workers` of them are computed in advance."""
    ahead: deque[Future[B]] = deque()
    for item in items:
        ahead.append(pool.submit(function, item))
        if len(ahead) >= workers():
            yield ahead.popleft().result()
            bar.update()
    while ahead:
        yield ahead.popleft().result()
        bar.update()
