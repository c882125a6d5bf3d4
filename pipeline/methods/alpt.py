"""ALPT: tables trained in low precision, with a learned step for each row. Li et al. 2023, AAAI (arXiv 2212.05735).

A row is stored as codes q, integers of b bits, and a step; a lookup returns step * q. A training step moves the
looked-up row to w. Then the row's step learns from the rounding error of w by LSQ's gradient (Esser et al. 2020),

    d(step * q) / d(step) = q - w / step within the range of the codes; beyond it q, the end of the range,

and w is rounded at random, so that the mean of the stored row is w: q = floor(w / step + u), u ~ U(0, 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.evidence import Evidence
from pipeline.data.schema import Schema
from pipeline.embeddings.rounded import RoundedTables, codes_within, widest
from pipeline.embeddings.table import Table
from pipeline.workflow.validation import Positive

SPAN = {2: 0.125, 4: 0.125, 8: 0.25}  # by bits: the largest magnitude of a row's codes before training


class RoundToStep(torch.autograd.Function):
    """step * q for rows w (u, d) and their steps (u, 1): q = floor(w / step + noise), clipped to [low, high].

    The gradient of w is passed straight through, and the gradient of the step is LSQ's. A noise of 0.5 rounds to the
    nearest code.
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


class LowPrecision(RoundedTables):
    """Tables whose rows are rounded at each lookup in training, each row to a grid of its own.

    NOTE[DIFF]: the paper runs every batch twice: once to learn w, and once to learn the step from the new w and then
    round. Here a row keeps its new w until the next batch that looks it up. One pass over that batch rounds the row and
    trains both the row and its step: the same alternation at half the cost, but with the next batch. Validation and
    serving round to the nearest code.
    NOTE[DIFF]: the paper scales the step's gradient and trains the step with a learning rate of its own, 2e-5. Adam
    ignores the scale of a gradient, so here the step's logarithm is learned: a learning rate of 0.01 changes a step by
    1 %.
    NOTE[DIFF]: in training the codes are kept as multiples of the step in float32, as `RowAdam` needs them. The served
    tables are as small as the paper's, but tables in training are not.

    Args:
        schema, dims, dim: of `MixedTables`.
        bits: of a code.
        span: the largest magnitude of a row's codes before training.
    """

    def __init__(self, schema: Schema, dims: Mapping[str, int], dim: int, bits: int, span: float) -> None:
        super().__init__(schema, dims, dim, bits)
        self.span = span
        self.low, self.high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        sizes = {d: len(table.get_parameter("weight")) for d, table in self.tables.items()}
        self.steps = nn.ModuleDict({d: Table(size, 1, sd=0) for d, size in sizes.items()})  # log(step / first step)

    def values(self, name: str, rows: Tensor) -> Tensor:
        stored = self.tables[name](rows)
        settled = self.get_buffer(f"scale_{name}").index_select(0, rows).float()[:, None]
        step = torch.where(settled > 0, settled, self._step(self.steps[name](rows)))
        noise: Tensor | float = torch.rand_like(stored) if self.training else 0.5
        rounded: Tensor = RoundToStep.apply(stored, step, noise, self.low, self.high)
        if self.training:
            with torch.no_grad():  # the optimiser continues from the rounded rows
                self.tables[name].get_parameter("weight").index_copy_(0, rows, rounded)
        return rounded

    def _step(self, logarithm: Tensor) -> Tensor:
        return logarithm.exp() * (self.span / -self.low)

    def rounded(self, d: str) -> tuple[Tensor, Tensor]:
        """The nearest codes, and the learned steps in float16."""
        step = self._step(self.steps[d].get_parameter("weight")[:, 0])
        scale = step.clamp(2**-24, torch.finfo(torch.float16).max).half()
        return codes_within(self.tables[d].get_parameter("weight"), scale, self.low, self.high), scale


def derive(evidence: Evidence, *, bits: Literal[2, 4, 8] = 8, span: Positive | None = None) -> Allocation:
    """The widest dimension within the budget; D if there is no budget.

    Args:
        bits: of a code.
        span: the largest magnitude of a row's codes before training; None for 0.25 with 8 bits, and 0.125 with fewer.

    NOTE[DIFF]: in the paper, the first numbers set the first steps: 2 mean|w| / sqrt(2 ** (bits - 1)). These steps are
    small, and training changes a step by a few tenths of its size, so the numbers would soon grow out of range.
    """
    reach = SPAN[bits] if span is None else span
    dim = widest(evidence, partial(plain, bits=bits, span=reach))
    return evidence.allocation(dim, {"bits": bits, "span": reach})


def plain(schema: Schema, dims: Mapping[str, int], dim: int, bits: int = 8, span: float = SPAN[8]) -> LowPrecision:
    """Tables of one width for all fields; the backbone takes this width, so nothing is lifted."""
    return LowPrecision(schema, dims, max(dims.values()), bits, span)


def build(schema: Schema, dim: int, allocation: Allocation) -> LowPrecision:
    return plain(schema, allocation.dims, dim, **allocation.settings)
