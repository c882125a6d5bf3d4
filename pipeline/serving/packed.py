"""Tables of mixed dimensions as they are served, in float32 or int8; lookups need no sort and no loop over fields.

In training, a field of d < D dimensions has the vectors e P. Serving stores e L and Q instead, where P = L Q and the
rows of Q (d, D) are orthonormal. The vectors and the number of stored numbers stay the same, and the length of e L Q is
the length of e L. The first layer of an MLP is multiplied by Q only once, at its first use, so a prediction reads the
numbers that are looked up instead of F * D per row.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.data.schema import Schema
from pipeline.embeddings.batch import Direct
from pipeline.embeddings.mixed import MixedTables, Packing
from pipeline.embeddings.rounded import quantise
from pipeline.models.factored import Factored, Lifts, Vectors
from pipeline.serving.tables import FEW, ServedTables


class PackedTables(ServedTables):
    """Tables of mixed dimensions.

    In float32, vectors of fields of dimension D equal the trained ones exactly, all others up to rounding. In int8,
    every row has its own scale and is rounded to 255 levels; the error of a number is at most half of the scale.

    Args:
        schema: F kept fields.
        dims: dimension of each field, 1 to D, by name.
        dim: D.
        packed: the tensors of `pack`.

    Raises:
        ValueError: if the shapes of ``packed`` do not fit ``dims``.
    """

    def __init__(self, schema: Schema, dims: Mapping[str, int], dim: int, packed: Mapping[str, Tensor]) -> None:
        packing = Packing(schema, dims)
        _check(packed, packing, dim)
        self.schema, self.dims, self.dim, self.tensors = schema, dict(dims), dim, dict(packed)
        widths = packing.distinct.repeat(np.diff(packing.groups))  # of the packed fields
        eye = torch.eye(dim).repeat(int((widths == dim).sum()), 1)
        self.lifts = Lifts(torch.cat([packed["projection"], eye]), widths.tolist(), packing.order.tolist())
        self.whole = len(packed["projection"]) == 0  # all tables have width D and the order of the schema
        slots = _Slots(schema, packing, widths)
        self.by_row = _ByRow(slots, packed["table"], packed.get("scale"))
        self.by_number = _ByNumber(slots, packed["table"], packed.get("scale"))

    @classmethod
    def of(cls, embedding: MixedTables, schema: Schema, int8: bool) -> PackedTables:
        """The served form of a trained embedding of these fields."""
        return cls(schema, embedding.dims, embedding.dim, pack(embedding, int8))

    @classmethod
    def restored(cls, schema: Schema, dim: int, packed: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Self:
        return cls(schema, settings["dims"], dim, packed)

    def settings(self) -> dict[str, Any]:
        return {"dims": self.dims}

    def packed(self) -> dict[str, Tensor]:
        return dict(self.tensors)

    def look_up(self, ids: Tensor, occ: Direct) -> tuple[Direct, Tensor | Vectors]:
        weights = None if occ.weights is None else occ.weights.view(ids.shape)
        if self.whole:
            values = self.by_row.parts[0].rows(occ.rows) if weights is None else self.by_row.values(ids, weights)
            return occ, values.view(*occ.shape, self.dim)
        read = self.by_number if len(ids) <= FEW else self.by_row
        return occ, Factored(read.values(ids, weights), self.lifts)


class _Slots:
    """The slots of a schema in the order of the packed fields.

    Args:
        schema: F fields in S slots.
        packing: of the fields.
        widths: (F,) dimension of each packed field.

    Attributes:
        places: (S,) packed field of each slot, in the order of the schema.
        order: (S,) slots sorted by packed field. All other arrays have this order.
        dims: (S,) dimension of each.
        groups: (S,) number of its dimension in ``packing.distinct``.
        base: (S,) row of its field's id 0 in the table of its dimension.
    """

    def __init__(self, schema: Schema, packing: Packing, widths: np.ndarray) -> None:
        self.packing, self.widths = packing, widths
        self.places = np.argsort(packing.order)[schema.slot_fields]
        self.order = np.argsort(self.places, kind="stable")
        sorted_places = self.places[self.order]
        self.dims, self.base = widths[sorted_places], packing.base[sorted_places]
        self.groups = np.searchsorted(packing.distinct, self.dims)
        self.first_numbers = np.cumsum([0, *(r * d for r, d in zip(packing.rows, packing.distinct, strict=True))])
        self.first_rows = np.cumsum([0, *packing.rows])  # of the table of each dimension, among all rows


class _ByNumber:
    """Gathers the values of a few rows of ids at once, number by number.

    A row of ids looks up one number for each slot and each dimension of its field. These E entries are ordered by
    packed slot.
    """

    def __init__(self, slots: _Slots, table: Tensor, scale: Tensor | None) -> None:
        self.table, self.scale = table, scale
        packing, dims = slots.packing, slots.dims
        of_entry = np.repeat(np.arange(len(dims)), dims)
        within = np.arange(len(of_entry)) - np.repeat(np.cumsum(dims) - dims, dims)
        first = slots.first_numbers[slots.groups] + slots.base * dims
        begins = np.cumsum(slots.widths) - slots.widths  # first number of each packed field
        index = torch.int32 if len(table) < 2**31 else torch.int64
        self.slots = torch.from_numpy(slots.order[of_entry])
        self.dims = torch.from_numpy(dims[of_entry]).to(index)
        self.first = torch.from_numpy(first[of_entry] + within).to(index)
        bags = len(slots.order) > len(packing.order)
        columns = begins[slots.places[slots.order]][of_entry] + within
        self.columns = torch.from_numpy(columns) if bags else None
        self.width = int(slots.widths.sum())
        scale_first = np.empty(len(slots.order), dtype=np.int64)
        scale_first[slots.order] = slots.first_rows[slots.groups] + slots.base
        self.scale_first = torch.from_numpy(scale_first).int()

    def values(self, ids: Tensor, weights: Tensor | None) -> Tensor:
        """ids (B, S), weights (B, S) in bags -> (B, K)."""
        drawn = ids.to(self.first.dtype).index_select(1, self.slots)
        entries = torch.addcmul(self.first, drawn, self.dims)
        values = self.table.index_select(0, entries.flatten()).view(entries.shape)
        if self.scale is not None:
            scale = self.scale.index_select(0, (ids + self.scale_first).flatten()).view(ids.shape).float()
            weights = scale if weights is None else scale * weights
            values = values.float()
        if weights is not None:
            values = values * weights.index_select(1, self.slots)
        if self.columns is None:
            return values
        return torch.zeros(len(ids), self.width).index_add_(1, self.columns, values)


class _ByRow:
    """Gathers the values of many rows of ids, row by row, with one lookup for each distinct dimension."""

    def __init__(self, slots: _Slots, table: Tensor, scale: Tensor | None) -> None:
        packing, cuts, rows = slots.packing, slots.first_numbers, slots.first_rows
        places = np.searchsorted(slots.places[slots.order], np.arange(len(packing.order) + 1))  # first slot of a field
        self.slots = torch.from_numpy(slots.order)
        self.base = torch.from_numpy(slots.base).int()
        self.parts = [
            _Part(
                table[cuts[g] : cuts[g + 1]].view(packing.rows[g], int(d)),
                None if scale is None else scale[rows[g] : rows[g + 1]],
                slice(int(places[a]), int(places[b])),
                torch.from_numpy(places[a:b] - places[a]) if places[b] - places[a] > b - a else None,
            )
            for g, (d, (a, b)) in enumerate(zip(packing.distinct, itertools.pairwise(packing.groups), strict=True))
        ]

    def values(self, ids: Tensor, weights: Tensor | None) -> Tensor:
        """ids (B, S), weights (B, S) in bags -> (B, K)."""
        rows = ids.index_select(1, self.slots) + self.base
        shares = None if weights is None else weights.index_select(1, self.slots)
        own = [None if shares is None else shares[:, part.slots] for part in self.parts]
        return torch.cat([part.embed(rows[:, part.slots], o) for part, o in zip(self.parts, own, strict=True)], 1)


class _Part:
    """The fields of one dimension d.

    Args:
        table: (rows, d).
        scale: (rows,) of int8 tables.
        slots: of these fields among the packed slots.
        bag_starts: (f,) first slot of each field; None if no field is a bag.
    """

    def __init__(self, table: Tensor, scale: Tensor | None, slots: slice, bag_starts: Tensor | None) -> None:
        self.table, self.scale, self.slots, self.bag_starts = table, scale, slots, bag_starts

    def rows(self, rows: Tensor) -> Tensor:
        """Row numbers (n,) -> (n, d) float32."""
        values = self.table.index_select(0, rows)
        if self.scale is None:
            return values
        return values.float().mul_(self.scale.index_select(0, rows).float()[:, None])

    def embed(self, rows: Tensor, weights: Tensor | None) -> Tensor:
        """Row numbers (B, s), and their weights (B, s) in bags -> (B, f * d)."""
        values = self.rows(rows.flatten())
        if self.bag_starts is not None:
            assert weights is not None
            starts = (torch.arange(len(rows))[:, None] * rows.shape[1] + self.bag_starts).flatten()
            every, shares = torch.arange(len(values)), weights.flatten()
            values = nn.functional.embedding_bag(every, values, starts, mode="sum", per_sample_weights=shares)
        return values.view(len(rows), -1)


def settle(embedding: MixedTables) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Tables and projections of the same vectors, with orthonormal rows in each projection.

    For P = L Q of every field, the rows e of the table become e L, and P becomes Q.

    Args:
        embedding: trained.

    Returns:
        Tables (rows, d) and projections (f, d, D) by dimension d, ascending; D has no projection.
    """
    tables, projections = {}, {}
    for d, start, stop in zip(embedding.distinct.tolist(), embedding.groups, embedding.groups[1:], strict=False):
        table = embedding.tables[str(d)].get_parameter("weight").detach()
        if d < embedding.dim:
            across, down = torch.linalg.qr(embedding.projections[str(d)].detach().double().transpose(1, 2))
            sizes = embedding.cardinalities[start:stop]
            fields = zip(table.split(sizes), down, strict=True)
            table = torch.cat([(rows.double() @ lower.T).float() for rows, lower in fields])
            projections[d] = across.transpose(1, 2).float().contiguous()
        tables[d] = table
    return tables, projections


def pack(embedding: MixedTables, int8: bool = False) -> dict[str, Tensor]:
    """The tensors that serve an embedding whose tables have N numbers and V rows in all.

    Args:
        embedding: trained.
        int8: whether the tables are rounded to int8 instead of float32.

    Returns:
        ``table`` (N,) float32 or int8, the concatenated tables of `settle`; ``scale`` (V,) float16, only with int8;
        ``projection`` (P, D), the concatenated projections, always in float32 because they are small.
    """
    tables, projections = settle(embedding)
    lifts = [projection.flatten(0, 1) for projection in projections.values()]
    packed = {"projection": torch.cat(lifts) if lifts else torch.empty(0, embedding.dim)}
    if not int8:
        return {"table": torch.cat([table.flatten() for table in tables.values()])} | packed
    rounded = [quantise(table) for table in tables.values()]
    packed["table"] = torch.cat([values.flatten() for values, _ in rounded])
    packed["scale"] = torch.cat([scale for _, scale in rounded])
    return packed


def _check(packed: Mapping[str, Tensor], packing: Packing, dim: int) -> None:
    """Raise a ValueError unless the packed tensors have the shapes of the packing."""
    counts = np.diff(packing.groups)
    numbers = sum(r * int(d) for r, d in zip(packing.rows, packing.distinct, strict=True))
    lifted = int(sum(c * d for c, d in zip(counts, packing.distinct, strict=True) if d < dim))
    shapes = {"table": (numbers,), "projection": (lifted, dim)}
    if "scale" in packed:
        shapes["scale"] = (sum(packing.rows),)
    packed_shapes = {name: tuple(tensor.shape) for name, tensor in packed.items()}
    if packed_shapes != shapes:
        raise ValueError(f"packed tensors must have the shapes {shapes}, got {packed_shapes}")
