"""Progress of long work, with rate and time left: a bar on a terminal; in a log, a line a minute."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

LOG_SECONDS = 60.0


class _Log:
    """Writes each state of a bar to stderr as a line of its own."""

    def write(self, text: str) -> None:
        if line := text.strip():
            sys.stderr.write(f"{line}\n")

    def flush(self) -> None:
        sys.stderr.flush()


def progress(*args: Any, **settings: Any) -> tqdm:
    """A bar of tqdm with these arguments. Work that ends within a second (in a log, within a minute) shows none."""
    if sys.stderr.isatty():
        return tqdm(*args, delay=1, **settings)
    log = {"file": _Log(), "delay": LOG_SECONDS, "mininterval": LOG_SECONDS, "miniters": 1, "ncols": 100, "ascii": True}
    return tqdm(*args, **{**settings, **log})
