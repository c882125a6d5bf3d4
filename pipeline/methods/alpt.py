"""ALPT: tables trained in low precision, with a learned step for each row. Li et al. 2023, AAAI (arXiv 2212.05735).

A row is stored as codes q, whole numbers of b bits, and a step: what is looked up is step * q. A training step takes
the looked-up row to w; then the row's step learns from the rounding error of w by LSQ's gradient (Esser et al. 2020),

    d(step * q) / d(step) = q - w / step within the range of the codes, and q, an end of the range, beyond it,

and w is rounded at random, so that the mean of what is stored is w: q = floor(w / step + u), u ~ U(0, 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.evidence import Evidence
from pipeline.data.schema import Schema
from pipeline.embeddings.cost import widest_uniform
from pipeline.embeddings.rounded import QuantisedTables, codes_within
from pipeline.embeddings.table import Table

search = None
SPAN = {2: 0.125, 4: 0.125, 8: 0.25}  # by bits: of the codes of a row to either side of 0, before its step is learned


class Rounded(torch.autograd.Function):
    """step * q of rows w (u, d) and their steps (u, 1): q = floor(w / step + noise), clipped to [low, high].

    The gradient goes straight through to w; that of the step is LSQ's. Noise 0.5 rounds to the nearest.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, rows: Tensor, step: Tensor, noise: Tensor | float, low: int, high: int) -> Tensor:
        scaled = rows / step
        codes = torch.floor(scaled + noise).clamp_(low, high)
        inside = (scaled >= low) & (scaled <= high)
        ctx.save_for_backward(torch.where(inside, codes - scaled, codes))  # type: ignore[attr-defined]
        return codes * step

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (slope,) = ctx.saved_tensors
        return grad, (grad * slope).sum(1, keepdim=True), None, None, None


class LowPrecision(QuantisedTables):
    """Tables whose rows are rounded whenever they are looked up in training, each to a grid of its own.

    NOTE[DIFF]: the paper passes every batch twice, once to learn w and once, from the new w, the step; and rounds then.
    Here a row keeps its new w until a batch next looks it up, and that batch's one pass rounds it, learns from it and
    gives the step its gradient: the same alternation, at half the cost, on the next batch instead of the same one. What
    is validated and served is rounded to the nearest.
    NOTE[DIFF]: the paper scales the step's gradient and gives it a learning rate of its own, 2e-5. The pipeline's Adam
    takes no notice of a gradient's scale, so its logarithm is learned: a learning rate of 0.01 changes a step by 1 %.
    NOTE[DIFF]: the codes are kept as their multiples of the step in float32, as RowAdam wants them. What ships is as
    small as the paper's; training is not.
    """

    def __init__(self, schema: Schema, dims: Mapping[str, int], dim: int, bits: int, span: float) -> None:
        super().__init__(schema, dims, dim, bits)
        self.span = span
        self.low, self.high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        sizes = {d: len(table.get_parameter("weight")) for d, table in self.tables.items()}
        self.steps = nn.ModuleDict({d: Table(size, 1, sd=0) for d, size in sizes.items()})  # log(step / its start)

    def values(self, name: str, rows: Tensor) -> Tensor:
        found = super().values(name, rows)
        settled = self.get_buffer(f"scale_{name}").index_select(0, rows).float()[:, None]
        step = torch.where(settled > 0, settled, self._step(self.steps[name](rows)))
        noise: Tensor | float = torch.rand_like(found) if self.training else 0.5
        rounded: Tensor = Rounded.apply(found, step, noise, self.low, self.high)
        if self.training:
            with torch.no_grad():  # the optimiser goes on from what was looked up
                self.tables[name].get_parameter("weight").index_copy_(0, rows, rounded)
        return rounded

    def _step(self, logarithm: Tensor) -> Tensor:
        return logarithm.exp() * (self.span / -self.low)

    def rounded(self, d: str) -> tuple[Tensor, Tensor]:
        """Nearest codes, and the learned steps in float16."""
        step = self._step(self.steps[d].get_parameter("weight")[:, 0])
        scale = step.clamp(2**-24, torch.finfo(torch.float16).max).half()
        return codes_within(self.tables[d].get_parameter("weight"), scale, self.low, self.high), scale


def derive(given: Evidence, *, bits: Literal[2, 4, 8] = 8, span: float | None = None) -> Allocation:
    """The widest dimension within the budget; without one, D.

    Args:
        bits: of a number.
        span: that the codes of a row reach to either side of 0, before its step is learned; None for 0.25 with 8 bits
            and 0.125 with fewer.

    NOTE[DIFF]: the paper's steps start from the numbers at the start, 2 mean|w| / sqrt(2 ** (bits - 1)). These are
    small, and a step moves by a few tenths of its size in training, so that what the numbers grow to would be cut off.
    """
    if span is not None and span <= 0:
        raise ValueError(f"method.options.alpt: span must be above 0, however: {span}; None takes the default")
    settings = {"bits": bits, "span": SPAN[bits] if span is None else span}
    plain = Allocation("alpt", dict.fromkeys(given.schema.names, given.dim), settings)
    if given.budget is None:
        return plain

    def of_bits(schema: Schema, dim: int, allocation: Allocation) -> LowPrecision:
        return build(schema, dim, replace(allocation, settings=plain.settings))

    widest = widest_uniform(of_bits, given.schema, given.dim, given.budget, "alpt").dim
    return replace(plain, dims=dict.fromkeys(given.schema.names, widest))


def build(schema: Schema, dim: int, allocation: Allocation) -> LowPrecision:
    """The backbone sees the smaller width, so nothing has to be lifted."""
    bits = allocation.settings.get("bits", 8)
    span = allocation.settings.get("span", SPAN[bits])
    return LowPrecision(schema, allocation.dims, max(allocation.dims.values()), bits, span)
