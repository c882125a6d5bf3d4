"""Threads that share the work of the encoder, with a progress bar."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import pyarrow as pa
from tqdm import tqdm

THREADS = 8  # at most; each holds a row group
A = TypeVar("A")
B = TypeVar("B")


def progress_bar(title: str, total: int, unit: str) -> tqdm:
    return tqdm(desc=f"encode {title}", total=total, unit=unit, unit_scale=True, delay=1)


def workers() -> int:
    return min(THREADS, pa.cpu_count())


@contextlib.contextmanager
def thread_pool() -> Iterator[ThreadPoolExecutor]:
    """Work that is still waiting when the block ends is dropped."""
    pool = ThreadPoolExecutor(workers())
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def in_order(pool: ThreadPoolExecutor, function: Callable[[A], B], items: Iterable[A], progress: tqdm) -> Iterator[B]:
    """``function`` of every item, in order; the threads run ahead of who takes the results, but not far."""
    ahead: deque[Future[B]] = deque()
    for item in items:
        ahead.append(pool.submit(function, item))
        if len(ahead) >= workers():
            yield ahead.popleft().result()
            progress.update()
    while ahead:
        yield ahead.popleft().result()
        progress.update()
