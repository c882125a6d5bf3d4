"""A plain training step beside what this machine could do at best, and the bandwidths of its memory.

Limits of the step, at Criteo's shape:

* the step in order: the same code on as many rows, which stand together and in the order in which the batch wants
  them. Nothing is sorted, no place is random; what is left to gain is what disorder costs;
* the step on one block: those rows are a dense parameter, read and updated as a whole by torch's fused Adam;
* the MLP alone, forward and backward, on embedded values that are there already;
* the bytes of rows and moments, read and written once, at the bandwidth of a copy.

The rows are the same ones in every step, so that a cache may hold them: a limit that nothing which learns can reach.
The limit of reading text is the scan of `benchmarks.encode`.

    python -m benchmarks.limits
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import models, shapes, timing
from pipeline.data.schema import Schema
from pipeline.embeddings.batch import Occurrences
from pipeline.embeddings.table import Table
from pipeline.training.weights import LitCTR
from stages import _model

BIG = 1 << 29  # bytes of a tensor that no cache holds together with its copy
STEP, IN_ORDER, BLOCK, MLP = "plain step", "step in order", "step on one block", "MLP alone"
COPY, READ, GATHER = "copy", "contiguous read", "gather of random rows"


class InOrder(nn.Module):
    """In the place of a `Lookup`: ids (B, S) -> occurrences of the first U rows, each about n / U times, in order.

    Args:
        rows: U, at most the B * F occurrences of a batch.
        batch_size, fields: B, F.
    """

    def __init__(self, rows: int, batch_size: int, fields: int) -> None:
        super().__init__()
        n = batch_size * fields
        if rows > n:
            raise ValueError(f"{n} occurrences have no {rows} distinct rows")
        inverse = torch.arange(n) * rows // n
        self.occurrences = Occurrences(
            rows=torch.arange(rows),
            ends=(torch.arange(1, fields + 1) * rows // fields).int(),
            inverse=inverse,
            order=torch.arange(n),
            starts=torch.searchsorted(inverse, torch.arange(rows)),
            bags=None,
            bag_starts=None,
            weights=None,
            shape=(batch_size, fields),
        )

    def forward(self, ids: Tensor) -> Occurrences:
        return self.occurrences


class Block(nn.Module):
    """In the place of a `Table`: its first U rows as one dense parameter, always read whole."""

    def __init__(self, table: Table, rows: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(table.weight.detach()[:rows].clone())

    def forward(self, rows: Tensor) -> Tensor:
        """(U,) all row numbers -> (U, K)."""
        return self.weight


def in_order(module: LitCTR, rows: int, batch_size: int) -> LitCTR:
    """The module, its lookups replaced by reads of the first rows."""
    module.model.lookup = InOrder(rows, batch_size, len(module.model.kept))  # type: ignore[assignment]
    return module


def on_one_block(module: LitCTR, rows: int, batch_size: int) -> LitCTR:
    """The module, its lookups as `in_order`, and its tables cut to those rows."""
    in_order(module, rows, batch_size)
    for parent in list(module.model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Table):
                setattr(parent, name, Block(child, rows))
    return module


def least_bytes(module: LitCTR, rows: int) -> int:
    """What a step has to move: touched rows and both their moments, each read once and written once."""
    widths = [m.weight.shape[1] for m in module.model.modules() if isinstance(m, Table)]
    return rows * sum(widths) * 4 * 3 * 2


def run(quick: bool) -> dict[str, Any]:
    return measure(shapes.criteo(), models.BATCH, rounds=12 if quick else 60, big=BIG)


def measure(schema: Schema, batch_size: int, rounds: int, big: int) -> dict[str, Any]:
    """Times of steps and of memory.

    Args:
        rounds: of the steps; of memory a quarter.
        big: bytes of the tensors that are copied and read.

    Returns:
        ``steps``: `timing.summary` of each. ``times limit``: the plain step by each limit. ``least``: ``bytes`` that a
        step moves, and ``ms`` that a copy of them takes. ``memory``: of each ``GB/s``, bytes read and written, and
        ``times limit``, the copy's by its own. ``shape``, ``threads``, ``targets``.
    """
    torch.manual_seed(0)
    memory = _memory(schema.num_rows, max(2, rounds // 4), big)
    batches = shapes.batches(schema, batch_size, 24)
    rows = round(shapes.touched(schema, batches))
    split = models.split(batches)
    own = models.plain(schema, split)
    ordered = in_order(models.plain(schema, split), rows, batch_size)
    block = on_one_block(models.plain(schema, split), rows, batch_size)
    modules: dict[str, tuple[LitCTR, list[torch.optim.Optimizer]]] = {
        STEP: (own, own.configure_optimizers()),
        IN_ORDER: (ordered, ordered.configure_optimizers()),
        BLOCK: (block, [torch.optim.Adam(block.weights(), lr=block.lr, fused=True)]),
    }
    steps: dict[str, Callable[[int], Any]] = {
        name: lambda i, m=module, o=optimizers: m.weight_step(batches[i % len(batches)], o)
        for name, (module, optimizers) in modules.items()
    }
    steps[MLP] = _mlp_alone(own, batch_size)
    taken = timing.interleave(steps, rounds)
    moved = least_bytes(own, rows)
    floor = moved / (1e6 * memory[COPY]["GB/s"])
    limits = {name: timing.ratio(taken[STEP], taken[name]) for name in (IN_ORDER, BLOCK, MLP)}
    return {
        "shape": shapes.describe(schema, batches, models.DIM),
        "threads": torch.get_num_threads(),
        "steps": timing.summary(taken, STEP),
        "least": {"bytes": moved, "ms": floor},
        "times limit": limits | {"least": float(np.median(taken[STEP])) / floor},
        "memory": memory,
        "targets": [],
    }


def _mlp_alone(module: LitCTR, batch_size: int) -> Callable[[int], None]:
    """Its forward and backward pass, down to the gradient of the embedded values."""
    mlp: nn.Module = module.model.backbone.mlp  # type: ignore[assignment]
    embedded = torch.randn(batch_size, len(module.model.kept) * models.DIM, requires_grad=True)
    labels = (torch.rand(batch_size) < 0.25).float()
    wanted = [embedded, *mlp.parameters()]

    def step(_: int) -> None:
        loss = nn.functional.binary_cross_entropy_with_logits(mlp(embedded), labels)
        torch.autograd.grad(loss, wanted)

    return step


def _memory(table_rows: int, rounds: int, big: int) -> dict[str, dict[str, float]]:
    """Bandwidths with as many threads as torch has; the gather takes rows of 128 bytes."""
    source, target = torch.ones(big // 4), torch.zeros(big // 4)
    table = torch.ones(table_rows, 32)
    drawn = torch.randint(table_rows, (table_rows,))
    gathered = torch.empty_like(table)
    moved = {COPY: 2 * source.nbytes, READ: source.nbytes, GATHER: 2 * gathered.nbytes}
    taken = timing.interleave(
        {
            COPY: lambda _: target.copy_(source),
            READ: lambda _: source.sum(),
            GATHER: lambda _: torch.index_select(table, 0, drawn, out=gathered),
        },
        rounds,
        warm_up=1,
    )
    speeds = {name: moved[name] / (1e6 * values) for name, values in taken.items()}
    return {
        name: {"GB/s": float(np.median(values)), "times limit": timing.ratio(speeds[COPY], values)}
        for name, values in speeds.items()
    }


def table(results: dict[str, Any]) -> str:
    ratios, least = results["times limit"], results["least"]
    steps: list[tuple[Any, ...]] = [
        (name, entry["median"], f"{entry['low']:.1f} to {entry['high']:.1f}", ratios.get(name, 1.0))
        for name, entry in results["steps"].items()
    ]
    steps.append((f"copying the {least['bytes'] / 1e6:.3g} MB of rows and moments", least["ms"], "", ratios["least"]))
    memory = [(name, entry["GB/s"], entry["times limit"]) for name, entry in results["memory"].items()]
    return "\n\n".join(
        [
            "## Physical limits",
            f"{results['shape']} Threads: {results['threads']}. The plain step takes {ratios[BLOCK]:.2f} x its limit, "
            "the step on one block.",
            timing.markdown(("ms", "median", "quartiles", "plain step by it"), steps),
            "Memory, bytes read and written:",
            timing.markdown(("what", "GB/s", "copy by it"), memory),
            "The limit of reading text, a scan of its lines, stands beside each rate of `benchmarks.encode`.",
        ]
    )


if __name__ == "__main__":
    _model.tune()
    print(table(run(quick=True)))
