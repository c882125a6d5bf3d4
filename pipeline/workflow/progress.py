"""Progress of long work, with rate and time left: a bar on a terminal; in a log, a line a minute.

A bar inside another one vanishes at its end, so the outer bar stays the last line.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

DELAY_SECONDS = 1.0
LOG_SECONDS = 60.0
TICK_SECONDS = 1.0

_hidden = False


class _Log:
    """Writes each state of a bar to stderr as a line of its own."""

    def write(self, text: str) -> None:
        if line := text.strip():
            sys.stderr.write(f"{line}\n")

    def flush(self) -> None:
        sys.stderr.flush()


def progress(*args: Any, **settings: Any) -> tqdm:
    """A bar of tqdm with these arguments. Work that ends within a second (in a log, within a minute) shows none."""
    settings = {"leave": None, **settings, "disable": _hidden or settings.get("disable", False)}
    if sys.stderr.isatty():
        return tqdm(*args, delay=DELAY_SECONDS, **settings)
    log = {"file": _Log(), "delay": LOG_SECONDS, "mininterval": LOG_SECONDS, "miniters": 1, "ncols": 100, "ascii": True}
    return tqdm(*args, **{**settings, **log})


def hide() -> None:
    """Show no bars in this process, because its parent shows one for the work of all."""
    global _hidden
    _hidden = True


@contextlib.contextmanager
def ticking(bar: tqdm) -> Iterator[tqdm]:
    """Keep the time of a bar going while its work takes long from one update to the next; close it at the end."""
    bar.smoothing = 0  # the mean rate over all the work
    ended = threading.Event()

    def tick() -> None:
        while not ended.wait(TICK_SECONDS):
            now = time.time()
            if now - bar.last_print_t >= bar.mininterval:
                bar.last_print_t = now
                bar.refresh()

    ticker = threading.Thread(target=tick, daemon=True)
    with bar:
        if not bar.disable:
            ticker.start()
        try:
            yield bar
        finally:
            ended.set()
            if ticker.is_alive():
                ticker.join()
