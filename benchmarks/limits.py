"""A plain training step compared with physical limits of this machine, and the bandwidths of its memory.

Limits of the step, at Criteo's shape:

* the step in order: the same code on as many rows, which are neighbours in the order in which the batch needs them.
  Nothing is sorted and no access is random, so the difference is the cost of disorder;
* the step on one block: those rows are a dense parameter, which torch's fused Adam reads and updates as a whole;
* the MLP alone, forward and backward, on embedded values in memory;
* the bytes of rows and moments, each read once and written once, at the bandwidth of a copy.

The rows are the same in every step, so a cache may hold them. No step that learns from data can reach these limits.
`benchmarks.encode` has the limit of reading text: a scan of its lines.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import models, shapes, timing
from pipeline.data.schema import Schema
from pipeline.embeddings.batch import Occurrences
from pipeline.embeddings.table import Table
from pipeline.training.weights import LitWeights

BIG = 1 << 29  # bytes of a tensor that, with its copy, exceeds any cache
STEP, IN_ORDER, BLOCK, MLP = "plain step", "step in order", "step on one block", "MLP alone"
COPY, READ, GATHER = "copy", "contiguous read", "gather of random rows"


class InOrder(nn.Module):
    """Replaces a `Lookup`: ids (B, S) -> occurrences of the first U rows, each about n / U times, in order.

    Args:
        rows: U, at most the B * F occurrences of a batch.
        batch_size, fields: B, F.
    """

    def __init__(self, rows: int, batch_size: int, fields: int) -> None:
        super().__init__()
        n = batch_size * fields
        if rows > n:
            raise ValueError(f"rows must be at most {n}, the occurrences of a batch, got {rows}")
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
    """Replaces a `Table`: its first U rows as one dense parameter, which is always read whole."""

    def __init__(self, table: Table, rows: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(table.weight.detach()[:rows].clone())

    def forward(self, rows: Tensor) -> Tensor:
        """(U,) all row numbers -> (U, K)."""
        return self.weight


def in_order(module: LitWeights, rows: int, batch_size: int) -> LitWeights:
    """The module with its lookups replaced by reads of the first rows."""
    module.model.lookup = InOrder(rows, batch_size, len(module.model.kept))  # type: ignore[assignment]
    return module


def on_one_block(module: LitWeights, rows: int, batch_size: int) -> LitWeights:
    """The module, with the lookups of `in_order` and with its tables cut to those rows."""
    in_order(module, rows, batch_size)
    for parent in list(module.model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Table):
                setattr(parent, name, Block(child, rows))
    return module


def least_bytes(module: LitWeights, rows: int) -> int:
    """The bytes that a step must move: the looked-up rows and both moments of each, read once and written once."""
    widths = [m.weight.shape[1] for m in module.model.modules() if isinstance(m, Table)]
    return rows * sum(widths) * 4 * 3 * 2


def run(quick: bool) -> dict[str, Any]:
    return measure(shapes.criteo(), models.BATCH, rounds=12 if quick else 60, big=BIG)


def measure(schema: Schema, batch_size: int, rounds: int, big: int) -> dict[str, Any]:
    """Times of the steps, and bandwidths of the memory.

    Args:
        schema: F fields.
        batch_size: rows of a batch.
        rounds: of the steps; the memory has a quarter of them.
        big: bytes of the tensors that are copied and read.

    Returns:
        ``steps``: `timing.summary`. ``times limit``: the plain step divided by each limit. ``least``: the ``bytes``
        that a step moves, and the ``ms`` that a copy of them takes. ``memory``: for each access ``GB/s``, counting
        bytes read and written, and ``times limit``, the speed of the copy divided by its own. ``shape``, ``threads``,
        ``targets``.
    """
    torch.manual_seed(0)
    memory = _memory(schema.num_rows, max(2, rounds // 4), big)
    batches = shapes.draw_batches(schema, batch_size, 24)
    rows = round(shapes.distinct_rows(schema, batches))
    split = models.split(batches)
    own = models.plain(schema, split)
    ordered = in_order(models.plain(schema, split), rows, batch_size)
    block = on_one_block(models.plain(schema, split), rows, batch_size)
    adam = [torch.optim.Adam(block.weights(), lr=block.lr, fused=True)]
    steps: dict[str, timing.Step] = {
        STEP: models.weight_steps(own, batches),
        IN_ORDER: models.weight_steps(ordered, batches),
        BLOCK: lambda i: block.weight_step(batches[i % len(batches)], adam),
        MLP: _mlp_alone(own, batch_size),
    }
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


def _mlp_alone(module: LitWeights, batch_size: int) -> timing.Step:
    """The forward and backward pass of the module's MLP, down to the gradient of the embedded values."""
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
        (name, entry["median"], timing.low_to_high(entry), ratios.get(name, 1.0))
        for name, entry in results["steps"].items()
    ]
    steps.append((f"copy of the {least['bytes'] / 1e6:.3g} MB of rows and moments", least["ms"], "", ratios["least"]))
    memory = [(name, entry["GB/s"], entry["times limit"]) for name, entry in results["memory"].items()]
    return "\n\n".join(
        [
            "## Physical limits",
            f"{results['shape']} Threads: {results['threads']}. The plain step takes {ratios[BLOCK]:.2f} x its limit, "
            "the step on one block.",
            timing.markdown(("ms", "median", "quartiles", "plain step / this"), steps),
            "Memory, bytes read and written:",
            timing.markdown(("what", "GB/s", "copy / this"), memory),
            "The limit of reading text, a scan of its lines, is in the section on encoding.",
        ]
    )
