"""Runs one of the jobs, and measures it."""

from __future__ import annotations

import contextlib
import importlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks.alone import peak_mib

SCAN, PRODUCT, PANDAS, FUXICTR = "scan", "product", "pandas", "fuxictr"
MODULES = {SCAN: "scan", PRODUCT: "product", PANDAS: "with_pandas", FUXICTR: "with_fuxictr"}
POLL_SECONDS = 0.1


def run_job(name: str, file: str, folder: str) -> dict[str, Any]:
    """Run one job in this process; its ``seconds`` without imports, ``cores``, ``parts`` and ``peak_rss_mib``."""
    job = importlib.import_module(f"benchmarks.encoders.{MODULES[name]}").prepare(Path(file), Path(folder))
    # Only FuxiCTR works in several processes; watching the others would slow them.
    with watched() if name == FUXICTR else contextlib.nullcontext([0.0]) as together:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak after the preparation
        started, cpu = time.perf_counter(), time.process_time()
        parts = job()
        seconds = time.perf_counter() - started
        cores = (time.process_time() - cpu) / seconds
    return {"seconds": seconds, "cores": cores, "parts": parts, "peak_rss_mib": max(*together, peak_mib())}


@contextlib.contextmanager
def watched() -> Iterator[list[float]]:
    """The peak memory in MiB of this process and its children together; shared pages count once."""
    peak, stop = [0.0], threading.Event()

    def watch() -> None:
        me = psutil.Process()
        while not stop.wait(POLL_SECONDS):
            total = 0
            for process in [me, *me.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    total += process.memory_full_info().pss
            peak[0] = max(peak[0], total / 2**20)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()
