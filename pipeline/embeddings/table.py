"""A table with row-sparse gradients, and products of each field's rows with the field's matrix."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

INIT_SD = 0.01  # standard deviation of every embedded coordinate before training, for all dimensions


class _TakeRows(torch.autograd.Function):
    """table[rows] for distinct, ascending rows; the gradient is a coalesced sparse tensor over those rows."""

    @staticmethod
    def forward(ctx: FunctionCtx, table: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)  # type: ignore[attr-defined]
        ctx.table_shape = table.shape  # type: ignore[attr-defined]
        return table.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (rows,) = ctx.saved_tensors
        sparse = torch.sparse_coo_tensor(
            rows.view(1, -1), grad, ctx.table_shape, is_coalesced=True, check_invariants=False
        )
        return sparse, None


class Table(nn.Module):
    """V rows of K numbers. The gradient is sparse: it covers only the rows that a batch looked up.

    The training loop recognises such parameters by this class, and `pipeline.training.row_adam.RowAdam` updates them.

    Args:
        num_rows: V.
        dim: K.
        sd: standard deviation of the numbers before training; 0 for zeros.
    """

    def __init__(self, num_rows: int, dim: int, sd: float = INIT_SD) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_rows, dim))
        if sd:
            nn.init.normal_(self.weight, std=sd)
        else:
            nn.init.zeros_(self.weight)

    def forward(self, rows: Tensor) -> Tensor:
        """(U,) distinct, ascending row numbers -> (U, K); without gradients, any row numbers."""
        if not torch.is_grad_enabled():
            return self.weight.index_select(0, rows)
        return _TakeRows.apply(self.weight, rows)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Segments:
    """The number of rows of each field, where no batch changes it; it stands in the place of ``ends``, and nothing
    that is computed with it depends on the content of a tensor.

    Args:
        widths: (F,) rows of each field.
    """

    widths: tuple[int, ...]

    def runs(self) -> Iterator[tuple[slice, slice, int]]:
        """Neighbouring fields of equal width: their numbers, their rows, and the width."""
        field = row = 0
        for width, fields in itertools.groupby(self.widths):
            number = len(list(fields))
            yield slice(field, field + number), slice(row, row + number * width), width
            field, row = field + number, row + number * width


def grouped_matmul(values: Tensor, matrices: Tensor, ends: Tensor | Segments) -> Tensor:
    """Multiply the rows of each field by the field's matrix.

    Args:
        values: (U, K), ordered by field.
        matrices: (F, K, D).
        ends: (F,) int32, where the rows of each field end; or their numbers.

    Returns:
        (U, D).
    """
    if isinstance(ends, Segments):
        parts = [
            (values[rows].view(-1, width, values.shape[1]) @ matrices[fields]).flatten(0, 1)
            for fields, rows, width in ends.runs()
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)
    if not len(values):  # grouped_mm has no gradient for empty input
        return values @ matrices[0]
    if values.dtype == torch.float64:  # grouped_mm does not take float64; only tests and gradient checks use it
        split = torch.tensor_split(values, ends[:-1].long().cpu())
        return torch.cat([part @ matrix for part, matrix in zip(split, matrices, strict=True)])
    columns, width = matrices.shape[1:]
    if columns % 4 or width % 4:
        matrices = nn.functional.pad(matrices, (0, -width % 4, 0, -columns % 4))
    return nn.functional.grouped_mm(_aligned(values), matrices, offs=ends)[:, :width]


def grouped_outer(left: Tensor, right: Tensor, ends: Tensor | Segments) -> Tensor:
    """The sum of outer products over the rows of each field.

    Args:
        left: (U, K), ordered by field.
        right: (U, D), likewise.
        ends: (F,) int32, where the rows of each field end; or their numbers.

    Returns:
        (F, K, D).
    """
    if isinstance(ends, Segments):
        parts = [
            left[rows].view(-1, width, left.shape[1]).transpose(1, 2) @ right[rows].view(-1, width, right.shape[1])
            for _, rows, width in ends.runs()
        ]
        return torch.cat(parts)
    if left.dtype == torch.float64:
        lefts = torch.tensor_split(left, ends[:-1].long().cpu())
        rights = torch.tensor_split(right, ends[:-1].long().cpu())
        return torch.stack([a.T @ b for a, b in zip(lefts, rights, strict=True)])
    outer = nn.functional.grouped_mm(_aligned(left).T, _aligned(right), offs=ends)
    return outer[:, : left.shape[1], : right.shape[1]]


def _aligned(values: Tensor) -> Tensor:
    """Pad rows of float32 to a multiple of 16 bytes, as grouped_mm requires."""
    if values.shape[1] % 4 == 0:
        return values
    return nn.functional.pad(values, (0, -values.shape[1] % 4))


def field_of(ends: Tensor | Segments, rows: Tensor) -> Tensor:
    """(U,) the field of each of the rows (U, ...), which are ordered by field; ``ends`` as in `grouped_matmul`."""
    device = rows.device
    if isinstance(ends, Segments):
        parts = [
            torch.arange(fields.start, fields.stop, device=device).repeat_interleave(width)
            for fields, _, width in ends.runs()
        ]
        return torch.cat(parts)
    lengths = torch.diff(ends, prepend=ends.new_zeros(1))
    return torch.arange(len(ends), device=device).repeat_interleave(lengths, output_size=len(rows))


def field_sums(rows: Tensor, ends: Tensor | Segments, mass: Tensor | None = None) -> Tensor:
    """(U, K) -> (F, K): the sum of the rows of each field, weighted by mass (U,)."""
    if isinstance(ends, Segments):
        weighted = rows if mass is None else rows * mass[:, None]
        parts = [weighted[own].view(-1, width, rows.shape[1]).sum(1) for _, own, width in ends.runs()]
        return torch.cat(parts)
    every = torch.arange(len(rows), device=rows.device)
    starts = nn.functional.pad(ends[:-1].long(), (1, 0))
    return nn.functional.embedding_bag(every, rows, starts, mode="sum", per_sample_weights=mass)
