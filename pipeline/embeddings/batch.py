"""The distinct table rows that a batch of ids looks up, and their positions in the batch.

Ids repeat within a batch: 2,000 rows of 39 fields are 78,000 lookups of about 15,000 distinct table rows. So every
embedding computes one vector per distinct row (`Occurrences`), and only the last step spreads them over the batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from pipeline.data.schema import PADDING, Schema
from pipeline.data.share import Share
from pipeline.embeddings.table import Segments


@dataclass(frozen=True)
class Occurrences:
    """The distinct table rows of a batch, and their positions in it.

    U distinct rows occur n times in B * F bags. The bag of a single-valued field is one occurrence, the bag of a
    multi-valued field has one occurrence per value. Rows are ascending, so those of one field are contiguous.

    Args:
        rows: (U,) distinct row numbers, ascending.
        ends: (F,) int32 position in ``rows`` where the rows of each field end (exclusive).
        inverse: (n,) position in ``rows`` of each occurrence, in the order of the batch.
        order: (n,) occurrences sorted by row.
        starts: (U,) position in ``order`` where the occurrences of each row begin.
        bags: (n,) bag of each occurrence, or None if occurrence i is bag i.
        bag_starts: (B * F,) where each bag begins among the occurrences, or None as above.
        weights: (n,) share of each occurrence in its bag, or None if all are 1.
        shape: (B, F); or (bags,) if only some fields have a bag in a row.
        first_order: (B,) sum of the first-order weights of each row of the batch, if the embedding holds them.
        fields: (bags,) int64, the field of each bag, if only some fields have a bag in a row; None if bag i is of field
            i mod F.
        own: the occurrences in the rows of the batch that this process has, if several share it; see `divided`.
        share: of this process, in ``own``.
        segments: of the rows, if their number is the same in all batches of B rows; see `pipeline.embeddings.fixed`.
            Then U = n, and rows that are left over repeat the last distinct one of their field, without occurrences.
    """

    rows: Tensor
    ends: Tensor
    inverse: Tensor
    order: Tensor
    starts: Tensor
    bags: Tensor | None
    bag_starts: Tensor | None
    weights: Tensor | None
    shape: tuple[int, ...]
    first_order: Tensor | None = None
    fields: Tensor | None = None
    own: Occurrences | None = None
    share: Share | None = None
    segments: Segments | None = None

    @property
    def layout(self) -> Tensor | Segments:
        """How the rows are divided among fields, for the functions of `pipeline.embeddings.table`."""
        return self.segments or self.ends

    def mass(self) -> Tensor:
        """(U,) float: the sum of each row's weights over the batch; for single-valued fields, its occurrences."""
        n = len(self.order)
        if self.weights is None:
            ends = nn.functional.pad(self.starts[1:], (0, 1), value=n)
            return (ends - self.starts).to(torch.get_default_dtype())
        return torch.zeros(len(self.rows), device=self.rows.device).index_add_(0, self.inverse, self.weights)

    def bags_per_field(self) -> int | Tensor:
        """B; or (F,) if fields have different numbers of bags."""
        return self.shape[0] if self.fields is None else torch.bincount(self.fields, minlength=len(self.ends))

    def shares(self) -> Tensor:
        """(U,) `mass`, divided by the number of the field's bags."""
        if self.fields is None:
            return self.mass() / self.shape[0]
        field = torch.searchsorted(self.ends.long(), torch.arange(len(self.rows), device=self.rows.device), right=True)
        return self.mass() / self.bags_per_field()[field]  # type: ignore[index]

    def of_field(self, values: Tensor, field: int) -> Tensor:
        """The values (b, ...) of one field's bags, from those of all bags, (B, F, ...) or (bags, ...)."""
        return values[:, field] if self.fields is None else values[self.fields == field]

    def sums(self, values: Tensor) -> Tensor:
        """(F, ...) sum of the values of each field's bags."""
        if self.fields is None:
            return values.sum(0)
        shape = (len(self.ends), *values.shape[1:])
        return torch.zeros(shape, dtype=values.dtype, device=values.device).index_add_(0, self.fields, values)

    def to_bags(self, values: Tensor) -> Tensor:
        """Values (F, ...) of the fields, in a shape that suits those of all bags."""
        return values if self.fields is None else values[self.fields]


def divided(occ: Occurrences, share: Share) -> Occurrences:
    """The occurrences of a whole batch, with ``own``: the same distinct rows, and the bags of this process's rows.

    Args:
        occ: of a batch (B, F).
        share: of this process.
    """
    batch, fields = occ.shape
    rows = share.rows(batch)
    first, last = rows.start * fields, rows.stop * fields  # bags
    bags, bag_starts, weights = occ.bags, occ.bag_starts, occ.weights
    start, stop = first, last  # occurrences
    if bags is not None and bag_starts is not None and weights is not None:
        start, stop = torch.cat([bag_starts, bag_starts.new_tensor([len(bags)])])[[first, last]].tolist()
        bags, bag_starts, weights = bags[start:stop] - first, bag_starts[first:last] - start, weights[start:stop]
    kept = (occ.order >= start) & (occ.order < stop)
    before = kept.cumsum(0) - kept.long()
    own = Occurrences(
        rows=occ.rows,
        ends=occ.ends,
        inverse=occ.inverse[start:stop],
        order=occ.order[kept] - start,
        starts=before[occ.starts],
        bags=bags,
        bag_starts=bag_starts,
        weights=weights,
        shape=(rows.stop - rows.start, fields),
        share=share,
    )
    return replace(occ, own=own)


class _Spread(torch.autograd.Function):
    """The weighted sum of each bag's rows: (U, K) -> (B * F, K).

    The backward pass is the same operation with rows and bags exchanged: each row sums the gradients of the bags in
    which it occurs. It is one pass over the occurrences in row order, without atomics, so the result is reproducible.
    If several processes share a batch, their gradients of the distinct rows are added up.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, values: Tensor, occ: Occurrences) -> Tensor:
        ctx.occ = occ  # type: ignore[attr-defined]
        if occ.bag_starts is None:
            return nn.functional.embedding(occ.inverse, values)
        return bag_sum(values, occ.inverse, occ.bag_starts, occ.weights)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        occ: Occurrences = ctx.occ
        source = occ.order if occ.bags is None else occ.bags[occ.order]
        weights = None if occ.weights is None else occ.weights[occ.order]
        of_rows = bag_sum(grad.contiguous(), source, occ.starts, weights)
        return of_rows if occ.share is None else occ.share.sum(of_rows), None


def bag_sum(values: Tensor, index: Tensor, starts: Tensor, weights: Tensor | None) -> Tensor:
    """The weighted sum of each bag's rows.

    Args:
        values: (U, K).
        index: (n,) row of each occurrence, bag after bag.
        starts: (bags,) where each bag begins among the occurrences.
        weights: (n,) of the occurrences, or None if all are 1.

    Returns:
        (bags, K).
    """
    if weights is not None:
        weights = weights.to(values.dtype)
    return nn.functional.embedding_bag(index, values, starts, mode="sum", per_sample_weights=weights)


@dataclass(frozen=True)
class Direct:
    """Replaces `Occurrences` at inference: nothing is sorted, and a row is looked up at each of its occurrences.

    Args:
        rows: (n,) row number of each occurrence, in the order of the batch.
        bag_starts: (B * F,) where each bag begins among the occurrences, or None if bag i is occurrence i.
        weights: (n,) share of each occurrence in its bag, 0 for padding, or None as above.
        shape: (B, F).
        first_order: as above.
    """

    rows: Tensor
    bag_starts: Tensor | None
    weights: Tensor | None
    shape: tuple[int, int]
    first_order: Tensor | None = None

    def averaged(self, values: Tensor) -> Tensor:
        """(n, K) values of the occurrences -> (B, F, K)."""
        if self.bag_starts is not None:
            every = torch.arange(len(values), device=values.device)
            values = bag_sum(values, every, self.bag_starts, self.weights)
        return values.view(*self.shape, values.shape[1])


def spread(values: Tensor, occ: Occurrences | Direct) -> Tensor:
    """(U, K) values of the distinct rows -> (B, F, K), or (bags, K), values of the batch; the values of a bag are
    averaged. If several processes share the batch, B are the rows of this one."""
    if isinstance(occ, Direct):
        return occ.averaged(values)
    occ = occ.own or occ
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
    """Concatenate parts (u_i, K) to U rows, and move row j to ``places[j]``, for places (U,): -> (U, K)."""
    return _Placed.apply(places, *parts)  # type: ignore[no-any-return]


class Lookup(nn.Module):
    """ids (B, S) -> `Occurrences` of the rows of one table with all fields.

    Args:
        schema: F fields in S slots; the table holds their rows in the schema's order.
    """

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        offsets, bounds = schema.first_rows, schema.first_rows + schema.cardinalities
        self.num_fields = len(schema)
        self.has_bags = schema.num_slots > len(schema)
        # Tables of more than 2**31 rows would need int64 ids everywhere; the encoder cannot produce them.
        self.register_buffer("offsets", torch.tensor(offsets[schema.slot_fields], dtype=torch.int32), False)
        self.register_buffer("bounds", torch.tensor(bounds, dtype=torch.int32), False)
        self.register_buffer("slot_fields", torch.tensor(schema.slot_fields), False)

    offsets: Tensor
    bounds: Tensor
    slot_fields: Tensor

    def forward(self, ids: Tensor) -> Occurrences:
        """ids (B, S), integers -> the occurrences of the table's rows."""
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
        return _sorted(rows, self.bounds, bags, bag_starts, weights, (batch, self.num_fields))


def _sorted(
    rows: Tensor,
    bounds: Tensor,
    bags: Tensor | None,
    bag_starts: Tensor | None,
    weights: Tensor | None,
    shape: tuple[int, ...],
    fields: Tensor | None = None,
) -> Occurrences:
    """The occurrences of rows (n,) in the order of the batch; fields end at ``bounds`` (F,), see `Occurrences`."""
    ordered, order = torch.sort(rows, stable=True)
    distinct, run, counts = torch.unique_consecutive(ordered, return_inverse=True, return_counts=True)
    return Occurrences(
        rows=distinct.long(),
        ends=torch.searchsorted(distinct, bounds, out_int32=True),
        inverse=torch.empty_like(order).scatter_(0, order, run),
        order=order,
        starts=torch.cumsum(counts, 0) - counts,
        bags=bags,
        bag_starts=bag_starts,
        weights=weights,
        shape=shape,
        fields=fields,
    )


class RoleLookup(nn.Module):
    """ids of the fields of each role -> `Occurrences` of the rows of one table with all fields.

    Users, items and events come in different numbers, so each role has a matrix of its own. Bags are in the order of
    the roles in ``blocks``, and within a role in the order of its rows.

    Args:
        schema: F fields with roles.
    """

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        bounds = schema.first_rows + schema.cardinalities
        self.register_buffer("bounds", torch.tensor(bounds, dtype=torch.int32), False)
        roles = np.array([field.role for field in schema.fields])[schema.slot_fields]
        self.roles = tuple(dict.fromkeys(roles.tolist()))
        for role in self.roles:
            of_slot = schema.slot_fields[roles == role]
            fields, within = np.unique(of_slot, return_inverse=True)
            offsets = schema.first_rows[of_slot].astype(np.int32)
            for name, values in (("offsets", offsets), ("fields", fields), ("within", within)):
                self.register_buffer(f"{name}_of_{role}", torch.from_numpy(values), False)

    bounds: Tensor

    def number(self, role: str) -> int:
        """The number of fields of a role."""
        return len(self._of(role)[1]) if role in self.roles else 0

    def _of(self, role: str) -> tuple[Tensor, Tensor, Tensor]:
        """The offset of each slot of a role; the role's fields; and which of these each slot belongs to."""
        offsets, fields, within = (getattr(self, f"{name}_of_{role}") for name in ("offsets", "fields", "within"))
        return offsets, fields, within

    def forward(self, blocks: Mapping[str, Tensor]) -> Occurrences:
        """ids (n, S of the role) by role -> occurrences whose bags are (n, fields of the role), role after role."""
        rows, bags, fields, first = [], [], [], 0
        for role, ids in blocks.items():
            offsets, distinct, within = self._of(role)
            bag = first + torch.arange(len(ids), device=ids.device)[:, None] * len(distinct) + within
            present = ids != PADDING
            rows.append((ids + offsets)[present])
            bags.append(bag[present])
            fields.append(distinct.repeat(len(ids)))
            first += len(ids) * len(distinct)
        of_bag = torch.cat(bags)
        sizes = torch.bincount(of_bag, minlength=first)
        starts = torch.cumsum(sizes, 0) - sizes
        weights = (1.0 / sizes)[of_bag]
        return _sorted(torch.cat(rows), self.bounds, of_bag, starts, weights, (first,), torch.cat(fields))

    def all(self, schema: Schema) -> Occurrences:
        """Every row of the table once, as a bag of its own."""
        device = self.bounds.device
        every = torch.arange(schema.num_rows, device=device)
        fields = torch.from_numpy(np.repeat(np.arange(len(schema)), schema.cardinalities)).to(device)
        return Occurrences(every, self.bounds, every, every, every, None, None, None, (len(every),), None, fields)
