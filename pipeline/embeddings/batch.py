"""Lookups with row-sparse gradients, the contract of every embedding, and tables of mixed dimension.

A batch of ids repeats itself: 2,000 rows of 39 fields are 78,000 lookups of some 15,000 distinct rows. All
embeddings therefore work on the distinct rows (`Occurrences`), and spread the result over the batch last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from pipeline.data.schema import PADDING, Schema


@dataclass(frozen=True)
class Occurrences:
    """Which table rows a batch touches, and where.

    U distinct rows occur n times in B * F bags. A single-valued field's bag is one occurrence, a multi-valued
    field's bag has one per value. Everything is ordered by row, so the rows of one field stand together.

    Args:
        rows: (U,) distinct row numbers, ascending.
        ends: (F,) int32; rows of the f-th field end here (exclusive).
        inverse: (n,) position in ``rows`` of each occurrence, in the order of the batch.
        order: (n,) occurrences sorted by row.
        starts: (U,) where each row's run begins in ``order``.
        bags: (n,) bag of each occurrence, or None if bag i is occurrence i.
        bag_starts: (B * F,) where each bag begins among the occurrences, or None as above.
        weights: (n,) share of each occurrence in its bag, or None if all are 1.
        shape: (B, F).
    """

    rows: Tensor
    ends: Tensor
    inverse: Tensor
    order: Tensor
    starts: Tensor
    bags: Tensor | None
    bag_starts: Tensor | None
    weights: Tensor | None
    shape: tuple[int, int]

    def mass(self) -> Tensor:
        """(U,) float: summed weight of each row over the batch; for single-valued fields, its count."""
        n = len(self.order)
        if self.weights is None:
            ends = torch.cat([self.starts[1:], self.starts.new_tensor([n])])
            return (ends - self.starts).to(torch.get_default_dtype())
        return torch.zeros(len(self.rows), device=self.rows.device).index_add_(0, self.inverse, self.weights)


class _Spread(torch.autograd.Function):
    """Each bag's weighted sum of its rows: (U, K) -> (B * F, K).

    The backward pass is the same operation with the roles of rows and bags exchanged: every row sums the
    gradients of the bags it occurs in. One run over the occurrences in row order does it, without atomics and
    in a fixed order, hence reproducibly.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, values: Tensor, occ: Occurrences) -> Tensor:
        ctx.occ = occ  # type: ignore[attr-defined]
        if occ.bag_starts is None:
            return nn.functional.embedding(occ.inverse, values)
        return _bag_sum(values, occ.inverse, occ.bag_starts, occ.weights)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        occ: Occurrences = ctx.occ
        source = occ.order if occ.bags is None else occ.bags[occ.order]
        weights = None if occ.weights is None else occ.weights[occ.order]
        return _bag_sum(grad.contiguous(), source, occ.starts, weights), None


def _bag_sum(values: Tensor, index: Tensor, starts: Tensor, weights: Tensor | None) -> Tensor:
    if weights is not None:
        weights = weights.to(values.dtype)
    return nn.functional.embedding_bag(index, values, starts, mode="sum", per_sample_weights=weights)


@dataclass(frozen=True)
class Direct:
    """What takes the place of `Occurrences` at inference: nothing is sorted, a row is looked up as often as it occurs.

    Args:
        rows: (n,) row number of each occurrence, in the order of the batch.
        bag_starts: (B * F,) where each bag begins among the occurrences, or None if bag i is occurrence i.
        weights: (n,) share of each occurrence in its bag, 0 for padding, or None as above.
        shape: (B, F).
    """

    rows: Tensor
    bag_starts: Tensor | None
    weights: Tensor | None
    shape: tuple[int, int]

    def averaged(self, values: Tensor) -> Tensor:
        """(n, K) values of the occurrences -> (B, F, K)."""
        if self.bag_starts is not None:
            every = torch.arange(len(values), device=values.device)
            values = _bag_sum(values, every, self.bag_starts, self.weights)
        return values.view(*self.shape, values.shape[1])


def spread(values: Tensor, occ: Occurrences | Direct) -> Tensor:
    """(U, K) values of the rows -> (B, F, K) values of the batch; a bag's values are averaged."""
    if isinstance(occ, Direct):
        return occ.averaged(values)
    return _Spread.apply(values, occ).view(*occ.shape, values.shape[1])  # type: ignore[no-any-return]


class _Placed(torch.autograd.Function):
    """See `placed`."""

    @staticmethod
    def forward(ctx: FunctionCtx, places: Tensor, *parts: Tensor) -> Tensor:
        ctx.save_for_backward(places)  # type: ignore[attr-defined]
        ctx.sizes = [len(part) for part in parts]  # type: ignore[attr-defined]
        together = torch.cat(parts)
        return torch.empty_like(together).index_copy_(0, places, together)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (places,) = ctx.saved_tensors
        return None, *grad.index_select(0, places).split(ctx.sizes)


def placed(places: Tensor, *parts: Tensor) -> Tensor:
    """The rows of all parts (u_i, K) together, the j-th of them at ``places[j]``; places (U,) -> (U, K)."""
    return _Placed.apply(places, *parts)  # type: ignore[no-any-return]


class Lookup(nn.Module):
    """Turns ids (B, S) into `Occurrences` of the rows of one table that holds all fields.

    Args:
        schema: F fields in S slots; their rows follow each other in the schema's order.
    """

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        offsets, bounds = schema.first_rows, schema.first_rows + schema.cardinalities
        self.num_fields = len(schema)
        self.has_bags = schema.num_slots > len(schema)
        # Tables past 2**31 rows would need int64 ids throughout; the encoder cannot produce them.
        self.register_buffer("offsets", torch.tensor(offsets[schema.slot_fields], dtype=torch.int32), False)
        self.register_buffer("bounds", torch.tensor(bounds, dtype=torch.int32), False)
        self.register_buffer("slot_fields", torch.tensor(schema.slot_fields), False)

    offsets: Tensor
    bounds: Tensor
    slot_fields: Tensor

    def forward(self, ids: Tensor) -> Occurrences:
        """ids (B, S) integer -> the occurrences of the table's rows."""
        batch = len(ids)
        rows = (ids + self.offsets).flatten()
        bags = bag_starts = weights = None
        if self.has_bags:
            present = (ids != PADDING).flatten()
            bag_of_slot = torch.arange(batch, device=ids.device)[:, None] * self.num_fields + self.slot_fields
            rows, bags = rows[present], bag_of_slot.flatten()[present]
            sizes = torch.bincount(bags, minlength=batch * self.num_fields)
            bag_starts = torch.cumsum(sizes, 0) - sizes
            weights = (1.0 / sizes)[bags]
        ordered, order = torch.sort(rows, stable=True)
        distinct, run, counts = torch.unique_consecutive(ordered, return_inverse=True, return_counts=True)
        inverse = torch.empty_like(order).scatter_(0, order, run)
        return Occurrences(
            rows=distinct.long(),
            ends=torch.searchsorted(distinct, self.bounds, out_int32=True),
            inverse=inverse,
            order=order,
            starts=torch.cumsum(counts, 0) - counts,
            bags=bags,
            bag_starts=bag_starts,
            weights=weights,
            shape=(batch, self.num_fields),
        )
