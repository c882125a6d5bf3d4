"""The cost of tracking in a search: a training loop with and without recording 240 series at every step.

A step is about 60 ms of matrix products, and as many small operations as in a model. Rounds with and without tracking
alternate; the table shows medians.

    OMP_NUM_THREADS=1 python -m benchmarks.tracking --steps 200 --rounds 3
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from pipeline.tracking.tracker import Tracker

STEP_SECONDS = 0.060
SERIES = tuple(f"arch/C{field:02d}/d{dim:02d}" for field in range(48) for dim in (2, 4, 8, 16, 32))


def step(left: torch.Tensor, right: torch.Tensor, products: int) -> torch.Tensor:
    for _ in range(products):
        torch.mm(left, right)
    small = torch.zeros(())
    for _ in range(300):
        small = small + 1
    return small


def untracked(step: int) -> None:
    pass


def calibrate(left: torch.Tensor, right: torch.Tensor) -> int:
    """Number of products in a step."""
    step(left, right, 20)
    started = time.perf_counter()
    step(left, right, 50)
    return max(1, round(STEP_SECONDS / (time.perf_counter() - started) * 50))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    generator = torch.Generator().manual_seed(0)
    left, right = torch.rand(256, 256, generator=generator), torch.rand(256, 256, generator=generator)
    products = calibrate(left, right)
    values = torch.rand(len(SERIES), generator=generator)
    wall: dict[str, list[float]] = {"without": [], "journal only": [], "journal and MLflow": []}
    cpu: dict[str, list[float]] = {mode: [] for mode in wall}
    calls, drains = [], []
    for number in range(options.rounds):
        for mode in wall:
            os.environ["PIPELINE_TRACKING"] = "journal" if mode == "journal only" else ""
            with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as block:
                record: Callable[[int], None] = untracked
                if mode != "without":
                    tracker = block.enter_context(Tracker(Path(folder), "search", f"round-{number}", {}, wait=True))
                    run = tracker.run(seed=0)
                    record = partial(run.metrics, names=SERIES, values=values)
                for count in range(options.steps):
                    began, began_cpu = time.perf_counter(), time.thread_time()
                    step(left, right, products)
                    between = time.perf_counter()
                    record(count)
                    ended = time.perf_counter()
                    wall[mode].append(ended - began)
                    cpu[mode].append(time.thread_time() - began_cpu)
                    if mode != "without":
                        calls.append(ended - between)
                closing = time.perf_counter()
                block.close()
                if mode == "journal and MLflow":
                    drains.append(time.perf_counter() - closing)
    print(f"{len(SERIES)} series, {options.steps} steps, {options.rounds} rounds, {torch.get_num_threads()} thread(s)")
    print(f"{'median of a step':20s} {'wall ms':>9s} {'ratio':>7s} {'CPU ms':>9s} {'ratio':>7s}")
    for mode in wall:
        row = ""
        for taken in (wall, cpu):
            median = statistics.median(taken[mode])
            row += f" {1e3 * median:9.2f} {median / statistics.median(taken['without']):7.3f}"
        print(f"{mode:20s}{row}")
    print(f"call of Run.metrics: {1e3 * statistics.median(calls):.3f} ms")
    points = options.steps * len(SERIES)
    print(f"wait at the end until MLflow has all {points:,} points: {statistics.median(drains):.2f} s")


if __name__ == "__main__":
    main()
