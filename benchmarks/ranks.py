"""A training step on several processes beside the same step on one, and the bytes that it exchanges.

The steps take turns: the first process takes a step alone, and then all take a step together, in one thread each.
Processor time is that of the first process; on busy cores it says more than the time on the clock, and it leaves out
the waiting for others.

    python -m benchmarks.ranks --processes 2 --rounds 20
    python -m benchmarks.ranks --batch 16384 --kind search
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed

from benchmarks import models, shapes, timing
from pipeline.data.schema import Schema
from pipeline.training import ranks

WARM_UP = 3
DEVICES = "--processes"


@contextmanager
def counted() -> Iterator[list[int]]:
    """The bytes of each exchange within the block."""
    sizes: list[int] = []
    exchange = distributed.all_reduce

    def count(values: Tensor, *rest: Any, **more: Any) -> Any:
        sizes.append(values.numel() * values.element_size())
        return exchange(values, *rest, **more)

    distributed.all_reduce = count  # type: ignore[assignment]
    try:
        yield sizes
    finally:
        distributed.all_reduce = exchange


def measure(kind: models.Kind, schema: Schema, batch_size: int, rounds: int) -> dict[str, Any]:
    """What the first process has measured; the others return nothing of use."""
    batches = shapes.draw_batches(schema, batch_size, 8)
    rows = models.split(batches)
    torch.manual_seed(0)
    together = models.training(kind, schema, rows)
    share = ranks.share()
    assert share is not None
    together.divide(share, batch_size)
    step = models.weight_steps(together, batches)

    def divided(number: int) -> None:
        ranks.wait_for_all()  # so that nobody begins while the first process measures something else
        step(number)

    if not ranks.first():
        for number in range(WARM_UP + rounds + 1):
            divided(number)
        return {}
    torch.manual_seed(0)
    whole = models.weight_steps(models.training(kind, schema, rows), batches)

    steps = {"one process": whole, f"{ranks.number()} processes": divided}
    processor: dict[str, list[float]] = {name: [] for name in steps}
    taken = timing.interleave({name: _clocked(one, processor[name]) for name, one in steps.items()}, rounds, WARM_UP)
    with counted() as sizes:
        divided(WARM_UP + rounds)
    own = {name: 1e3 * np.median(values[WARM_UP:]) for name, values in processor.items()}
    return {"shape": shapes.describe(schema, batches, models.DIM), "taken": taken, "processor": own, "sizes": sizes[1:]}


def _clocked(step: timing.Step, seconds: list[float]) -> timing.Step:
    def run(number: int) -> None:
        began = time.process_time()
        step(number)
        seconds.append(time.process_time() - began)

    return run


def table(found: dict[str, Any]) -> str:
    taken, first = found["taken"], next(iter(found["taken"]))
    entries = timing.summary(taken, first)
    rows = [
        [name, entry["median"], timing.low_to_high(entry), entry["ratio"], float(found["processor"][name])]
        for name, entry in entries.items()
    ]
    head = ["a step", "ms", "quartiles", "ratio", "processor ms"]
    sizes: Sequence[int] = found["sizes"]
    return (
        f"{found['shape']}\n\n{timing.markdown(head, rows)}\n\n"
        f"{len(sizes)} exchanges of {sum(sizes):,} bytes in all; the largest: "
        f"{', '.join(f'{size:,}' for size in sorted(sizes, reverse=True)[:4])}."
    )


def settings() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(DEVICES, type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch", type=int, default=models.BATCH)
    parser.add_argument("--kind", choices=models.KINDS, default="plain")
    return parser.parse_args()


def main() -> None:
    options = settings()
    run: Callable[[], None] = main  # the other processes read the same command line
    with ranks.together(run, options.processes, DEVICES):
        found = measure(options.kind, shapes.criteo(), options.batch, options.rounds)
    if found:
        print(table(found))


if __name__ == "__main__":
    main()
