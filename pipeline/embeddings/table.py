"""A table with row-sparse gradients, and products of each field's rows with that field's matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

INIT_SD = 0.01  # of every embedded coordinate before training, whatever the dimension of its field


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
    """V rows of K numbers whose gradient is sparse over the rows that a batch touched.

    Optimisers find such parameters by this class; see `pipeline.optim`.
    """

    def __init__(self, num_rows: int, dim: int, sd: float = INIT_SD) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_rows, dim))
        if sd:
            nn.init.normal_(self.weight, std=sd)
        else:
            nn.init.zeros_(self.weight)

    def forward(self, rows: Tensor) -> Tensor:
        """(U,) distinct, ascending row numbers -> (U, K); without gradients any row numbers will do."""
        if not torch.is_grad_enabled():
            return self.weight.index_select(0, rows)
        return _TakeRows.apply(self.weight, rows)  # type: ignore[no-any-return]


def grouped_matmul(values: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    """Multiply each field's rows by that field's matrix.

    Args:
        values: (U, K), rows of one field standing together.
        matrices: (F, K, D).
        ends: (F,) int32, where each field's rows end.

    Returns:
        (U, D).
    """
    if not len(values):  # of which grouped_mm finds no gradient
        return values @ matrices[0]
    if values.dtype == torch.float64:  # grouped_mm knows no float64; only tests and gradient checks come here
        parts = torch.tensor_split(values, ends[:-1].long().cpu())
        return torch.cat([part @ matrix for part, matrix in zip(parts, matrices, strict=True)])
    columns, width = matrices.shape[1:]
    if columns % 4 or width % 4:
        matrices = nn.functional.pad(matrices, (0, -width % 4, 0, -columns % 4))
    return nn.functional.grouped_mm(_aligned(values), matrices, offs=ends)[:, :width]


def grouped_outer(left: Tensor, right: Tensor, ends: Tensor) -> Tensor:
    """Sum of outer products over each field's rows: (U, K), (U, D), (F,) -> (F, K, D)."""
    if left.dtype == torch.float64:
        lefts = torch.tensor_split(left, ends[:-1].long().cpu())
        rights = torch.tensor_split(right, ends[:-1].long().cpu())
        return torch.stack([a.T @ b for a, b in zip(lefts, rights, strict=True)])
    outer = nn.functional.grouped_mm(_aligned(left).T, _aligned(right), offs=ends)
    return outer[:, : left.shape[1], : right.shape[1]]


def _aligned(values: Tensor) -> Tensor:
    """Pad rows of float32 to 16 bytes, which grouped_mm insists on."""
    if values.shape[1] % 4 == 0:
        return values
    return nn.functional.pad(values, (0, -values.shape[1] % 4))


def field_of(ends: Tensor, rows: int) -> Tensor:
    """(F,) ends of fields -> (U,) field of each row."""
    lengths = torch.diff(ends, prepend=ends.new_zeros(1))
    return torch.arange(len(ends), device=ends.device).repeat_interleave(lengths, output_size=rows)


def field_sums(rows: Tensor, ends: Tensor, mass: Tensor | None = None) -> Tensor:
    """(U, K) -> (F, K): each field's rows summed, with weights mass (U,)."""
    every = torch.arange(len(rows), device=rows.device)
    starts = nn.functional.pad(ends[:-1].long(), (1, 0))
    return nn.functional.embedding_bag(every, rows, starts, mode="sum", per_sample_weights=mass)
