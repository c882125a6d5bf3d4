"""Lookups with row-sparse gradients, the contract of every embedding, and tables of mixed dimension.

A batch of ids repeats itself: 2,000 rows of 39 fields are 78,000 lookups of some 15,000 distinct rows. All
embeddings therefore work on the distinct rows (`Occurrences`), and spread the result over the batch last.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from pipeline.schema import PADDING, Schema

INIT_SD = 0.01  # of every embedded coordinate before training, whatever the dimension of its field


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


Passes = Callable[[], Iterator[tuple[Tensor, Tensor]]]


class FieldEmbedding(nn.Module):
    """The contract of every method: a batch's occurrences -> embedded (B, F, D), and hooks for a plain table.

    What ``forward`` computes in evaluation mode after `finish` is what is served.
    ``dim`` is D, the width that the backbone sees.
    """

    dim: int

    def forward(self, occ: Occurrences) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must define forward(occ)")

    # In a search

    def arch_parameters(self) -> list[nn.Parameter]:
        """Parameters that decide the architecture; none for an embedding that is not searched."""
        return []

    def before_step(self, step: int, planned: int) -> None:
        """Told the number of finished weight steps and the number planned, before every weight step."""

    def objective(self, loss: Tensor, part: str) -> Tensor:
        """The loss to minimise, given the prediction loss on ``part`` ("train" or "arch")."""
        return loss

    def warming(self) -> bool:
        """Whether it is too early for steps of the architecture, and for its trajectory."""
        return False

    def scores(self) -> Tensor | None:
        """(F, N) log-probabilities of the candidates, or None where none are scored."""
        return None

    def watched(self) -> dict[str, float]:
        """What to record with every step of the architecture besides its scores, e.g. a temperature ``tau``."""
        return {}

    def conclude(self, passes: Passes) -> None:
        """Told that the search's last step is done: time to look at the trained supernet, e.g. at gradients of gates.

        Args:
            passes: each call gives the (logits (B,), labels (B,)) of all batches of ``arch``, with gradients, in
                evaluation mode, computed batch by batch from the embedding as it then is.
        """

    def found(self) -> dict[str, np.ndarray]:
        """What the method's ``derive`` needs besides `scores`, e.g. the importance of every cell."""
        return {}

    # In a model that is served

    def finish(self) -> None:
        """Told that training is over and its best weights are in place: prune, round, settle the codes."""

    def packed(self) -> dict[str, Tensor]:
        """What has to be kept to serve this embedding. Keys are ``kind`` or ``kind.detail``.

        On the ``meta`` device, before any training, it has to have the sizes that it has after `finish`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define packed()")

    def lookup(self, packed: Mapping[str, Tensor], occ: Occurrences) -> Tensor:
        """Embedded (B, F, D) from ``packed`` alone, where that is not made of the embedding's own tensors.

        What is packed then claims fewer bytes than the parameters take, and this is the proof that it suffices. An
        embedding that packs its own parameters and buffers needs none.
        """
        raise NotImplementedError(f"{type(self).__name__} packs its own tensors; forward(occ) looks them up")


class Packing:
    """How fields of several dimensions share tables, one for each distinct dimension.

    The fields are sorted by dimension, those of one dimension as in the schema.

    Args:
        schema: F fields.
        dims: dimension of each field; names as in the schema.

    Attributes:
        order: (F,) the schema's fields as they are packed.
        distinct: (G,) the distinct dimensions, ascending, and
        groups: (G + 1,) where the fields of each begin in ``order``.
        rows: (G,) number of rows of each table.
        base: (F,) row of each packed field's id 0 in its table.
    """

    def __init__(self, schema: Schema, dims: Mapping[str, int]) -> None:
        dim_of = np.array([dims[name] for name in schema.names])
        self.order = np.argsort(dim_of, kind="stable")
        self.distinct, first = np.unique(dim_of[self.order], return_index=True)
        self.groups: list[int] = np.append(first, len(self.order)).tolist()
        sizes = [schema.cardinalities[fields] for fields in np.split(self.order, first[1:])]
        self.rows: list[int] = [int(size.sum()) for size in sizes]
        self.base = np.concatenate([np.cumsum(size) - size for size in sizes])


class MixedTables(FieldEmbedding):
    """One table per field, each of its own dimension, lifted to a common width D.

    Fields of equal dimension share one packed table; a field narrower than D is lifted by a matrix of its own,
    ``x = e P`` (Zhao et al. 2021, section on re-training; Ginart et al. 2021 use the same form). With all dims
    equal to D this is the ordinary full table.

    NOTE[DIFF]: the paper's linear transform has a bias. It adds the same vector to every value of a field,
    which the MLP's own bias and the first-order weights already express, and it would have to be paid for.

    Args:
        schema: F fields.
        dims: dimension of each field, 1 to ``dim``; names as in the schema.
        dim: D.
    """

    def __init__(self, schema: Schema, dims: Mapping[str, int], dim: int) -> None:
        super().__init__()
        schema.check_names(dims)
        missing = sorted(set(schema.names) - set(dims))
        if missing:
            raise ValueError(f"no dimension given for fields {missing}")
        wrong = {name: d for name, d in dims.items() if not 1 <= d <= dim}
        if wrong:
            raise ValueError(f"dims must lie between 1 and {dim=}, however: {wrong}")
        self.dim, self.dims = dim, dict(dims)
        packing = Packing(schema, dims)
        self.distinct, self.groups = packing.distinct, packing.groups
        self.cardinalities = schema.cardinalities[packing.order].tolist()  # of the packed fields
        self.register_buffer("order", torch.tensor(packing.order), persistent=False)
        shift = packing.base - schema.first_rows[packing.order]
        self.register_buffer("shift", torch.tensor(shift), persistent=False)
        counts = np.diff(packing.groups).tolist()  # of fields
        self.tables = nn.ModuleDict(
            {str(d): Table(rows, int(d)) for d, rows in zip(self.distinct, packing.rows, strict=True)}
        )
        self.projections = nn.ParameterDict(
            {
                # Standard deviation 1/sqrt(d) keeps the embedded coordinates at INIT_SD for every d.
                str(d): nn.Parameter(torch.randn(count, int(d), dim) / int(d) ** 0.5)
                for d, count in zip(self.distinct, counts, strict=True)
                if d < dim
            }
        )

    order: Tensor
    shift: Tensor

    def forward(self, occ: Occurrences) -> Tensor:
        """Occurrences -> (B, F, D)."""
        return spread(self.of_rows(occ.rows, occ.ends), occ)

    def of_rows(self, rows: Tensor, ends: Tensor) -> Tensor:
        """Distinct rows (U,), ascending, those of the f-th field up to ``ends[f]``, int32 (F,) -> (U, D)."""
        if len(self.distinct) == 1:
            return self._lifted(0, rows, ends)
        lengths = torch.diff(ends, prepend=ends.new_zeros(1)).long()
        own = lengths[self.order]
        packed_ends = own.cumsum(0)
        begins = (ends - lengths)[self.order]
        steps = torch.stack([begins - (packed_ends - own), self.shift]).repeat_interleave(
            own, dim=1, output_size=len(rows)
        )
        source = torch.arange(len(rows), device=ends.device) + steps[0]  # packed place -> place in rows
        packed_rows = rows[source] + steps[1]
        bounds = [0, *packed_ends[[g - 1 for g in self.groups[1:]]].tolist()]
        lifted = [
            self._lifted(g, packed_rows[start:stop], (packed_ends[self.groups[g] : self.groups[g + 1]] - start).int())
            for g, (start, stop) in enumerate(itertools.pairwise(bounds))
        ]
        return placed(source, *lifted)

    def _lifted(self, g: int, rows: Tensor, ends: Tensor) -> Tensor:
        """Rows of the g-th distinct dim's table, mapped to D coordinates: (u,) -> (u, D)."""
        name = str(self.distinct[g])
        values = self.values(name, rows)
        return grouped_matmul(values, self.projections[name], ends) if name in self.projections else values

    def values(self, name: str, rows: Tensor) -> Tensor:
        """What is looked up in the table of the dimension ``name``: (u,) distinct, ascending rows -> (u, d)."""
        values: Tensor = self.tables[name](rows)
        return values

    def packed(self) -> dict[str, Tensor]:
        tables = {f"table.{d}": table.get_parameter("weight").detach() for d, table in self.tables.items()}
        return tables | {f"projection.{d}": p.detach() for d, p in self.projections.items()}
