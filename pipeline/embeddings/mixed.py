"""Tables of mixed dimensions, lifted to a common width."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.data.schema import Schema
from pipeline.embeddings.batch import Occurrences, placed
from pipeline.embeddings.contract import FieldEmbedding
from pipeline.embeddings.table import Segments, Table, grouped_matmul


class Packing:
    """The layout of fields in tables, one table per distinct dimension.

    Fields are sorted by dimension; fields of the same dimension keep the schema's order.

    Args:
        schema: F fields.
        dims: dimension of each field; names as in the schema.

    Attributes:
        order: (F,) numbers of the schema's fields, in packed order.
        distinct: (G,) distinct dimensions, ascending.
        groups: (G + 1,) position in ``order`` where the fields of each distinct dimension begin, and F.
        rows: (G,) number of rows of each table.
        base: (F,) for each packed field, the row of its id 0 in its table.
    """

    def __init__(self, schema: Schema, dims: Mapping[str, int]) -> None:
        dim_of = np.array([dims[name] for name in schema.names])
        self.order = np.argsort(dim_of, kind="stable")
        self.distinct, first = np.unique(dim_of[self.order], return_index=True)
        self.groups: list[int] = np.append(first, len(self.order)).tolist()
        sizes = [schema.cardinalities[fields] for fields in np.split(self.order, first[1:])]
        self.rows: list[int] = [int(size.sum()) for size in sizes]
        self.base = np.concatenate([np.cumsum(size) - size for size in sizes])


@dataclass(frozen=True)
class _Order:
    """How the rows (U,) of a batch are packed, dimension after dimension.

    Args:
        source: (U,) position of each packed row.
        shift: (U,) what is added to its number, so that it becomes the number in the table of its dimension.
        bounds: (G + 1,) where the rows of each distinct dimension begin, and U.
        ends: of each of the G, where the rows of its fields end, or their numbers.
    """

    source: Tensor
    shift: Tensor
    bounds: list[int]
    ends: Sequence[Tensor | Segments]


class MixedTables(FieldEmbedding):
    """One table per field, each of its own dimension, lifted to a common width D.

    Fields of equal dimension share one packed table. A field narrower than D is lifted by a matrix of its own,
    ``x = e P`` (Zhao et al. 2021, section on re-training; Ginart et al. 2021 use the same form). If all dims are D,
    this is the ordinary full table.

    NOTE[DIFF]: the paper's linear transform has a bias. It adds the same vector to every value of a field. The MLP's
    own bias and the first-order weights already express that, and a bias would cost bytes.

    Args:
        schema: F fields.
        dims: dimension of each field, 1 to ``dim``; names as in the schema.
        dim: D, the width of the vectors.

    Raises:
        ValueError: if a field has no dimension, or one out of range, or if a name is not in the schema.
    """

    replayable = True

    def __init__(self, schema: Schema, dims: Mapping[str, int], dim: int) -> None:
        super().__init__()
        schema.check_names(dims)
        missing = sorted(set(schema.names) - set(dims))
        if missing:
            raise ValueError(f"every field must have a dimension, but there is none for {missing}")
        wrong = {name: d for name, d in dims.items() if not 1 <= d <= dim}
        if wrong:
            raise ValueError(f"dims must lie between 1 and {dim=}, got {wrong}")
        self.dim, self.dims = dim, dict(dims)
        packing = Packing(schema, dims)
        self.distinct, self.groups = packing.distinct, packing.groups
        self._fixed: dict[Segments, _Order] = {}
        self.cardinalities = schema.cardinalities[packing.order].tolist()  # of the packed fields
        self.register_buffer("order", torch.tensor(packing.order), persistent=False)
        shift = packing.base - schema.first_rows[packing.order]
        self.register_buffer("shift", torch.tensor(shift), persistent=False)
        counts = np.diff(packing.groups).tolist()  # fields of each distinct dimension
        self.tables = nn.ModuleDict(
            {str(d): Table(rows, int(d)) for d, rows in zip(self.distinct, packing.rows, strict=True)}
        )
        self.projections = fresh_projections(self.distinct.tolist(), counts, dim)

    order: Tensor
    shift: Tensor

    def vectors(self, occ: Occurrences) -> Tensor:
        return self.of_rows(occ.rows, occ.layout)

    def of_rows(self, rows: Tensor, ends: Tensor | Segments) -> Tensor:
        """(U, D) vectors of distinct rows.

        Args:
            rows: (U,) ascending rows of a table with all fields.
            ends: (F,) int32, where the rows of each field end; or their numbers.
        """
        return self.lifted(rows, ends, self.values, dict(self.projections.items()))

    def values(self, name: str, rows: Tensor) -> Tensor:
        """Look up the table of the dimension ``name``: distinct, ascending rows (u,) -> (u, d)."""
        values: Tensor = self.tables[name](rows)
        return values

    def lifted(
        self,
        rows: Tensor,
        ends: Tensor | Segments,
        values: Callable[[str, Tensor], Tensor],
        projections: Mapping[str, Tensor],
    ) -> Tensor:
        """Like `of_rows`, from other values and projections than the module's own.

        Args:
            rows, ends: of `of_rows`.
            values: as the method `values`.
            projections: (f, d, D) of each dimension below D.
        """

        def of_group(g: int, rows: Tensor, ends: Tensor | Segments) -> Tensor:
            name = str(self.distinct[g])
            narrow = values(name, rows)
            return grouped_matmul(narrow, projections[name], ends) if name in projections else narrow

        if len(self.distinct) == 1:
            return of_group(0, rows, ends)
        if isinstance(ends, Segments):
            known = self._fixed.get(ends)
            if known is None or known.source.device != rows.device:
                known = self._fixed[ends] = self._order_of_segments(ends, rows)
        else:
            known = self._order_of(ends, len(rows))
        packed_rows = rows[known.source] + known.shift
        parts = [
            of_group(g, packed_rows[start:stop], known.ends[g])
            for g, (start, stop) in enumerate(itertools.pairwise(known.bounds))
        ]
        return placed(known.source, *parts)

    def _order_of(self, ends: Tensor, number: int) -> _Order:
        """How U rows, whose fields end at ``ends`` (F,), are packed."""
        lengths = torch.diff(ends, prepend=ends.new_zeros(1)).long()
        own = lengths[self.order]
        packed_ends = own.cumsum(0)
        begins = (ends - lengths)[self.order]
        steps = torch.stack([begins - (packed_ends - own), self.shift]).repeat_interleave(
            own, dim=1, output_size=number
        )
        bounds = [0, *packed_ends[[g - 1 for g in self.groups[1:]]].tolist()]
        of_groups = [
            (packed_ends[first:last] - start).int()
            for (first, last), start in zip(itertools.pairwise(self.groups), bounds, strict=False)
        ]
        return _Order(torch.arange(number, device=ends.device) + steps[0], steps[1], bounds, of_groups)

    def _order_of_segments(self, segments: Segments, rows: Tensor) -> _Order:
        """The same for rows whose number in each field is fixed; the tensors are on the device of ``rows``."""
        ends = torch.tensor(segments.widths, device=rows.device).cumsum(0).int()
        order = self._order_of(ends, len(rows))
        packed = [segments.widths[f] for f in self.order.tolist()]
        return replace(order, ends=[Segments(tuple(packed[a:b])) for a, b in itertools.pairwise(self.groups)])

    def of_fields(self) -> list[tuple[Tensor, Tensor | None]]:
        """The weights (rows, d) and the projection (d, D) of each field in the schema's order, as views; None if d is
        D."""
        parts: dict[int, tuple[Tensor, Tensor | None]] = {}
        for d, (start, stop) in zip(self.distinct.tolist(), itertools.pairwise(self.groups), strict=True):
            weights = self.tables[str(d)].get_parameter("weight").detach().split(self.cardinalities[start:stop])
            lifts = self.projections[str(d)].detach() if d < self.dim else [None] * (stop - start)
            for field, weight, lift in zip(self.order[start:stop].tolist(), weights, lifts, strict=True):
                parts[field] = weight, lift
        return [parts[field] for field in range(len(parts))]

    def packed(self) -> dict[str, Tensor]:
        tables = {f"table.{d}": table.get_parameter("weight").detach() for d, table in self.tables.items()}
        return tables | {f"projection.{d}": p.detach() for d, p in self.projections.items()}


def fresh_projections(dims: Sequence[int], counts: Sequence[int], dim: int) -> nn.ParameterDict:
    """(count, d, D) projections before training, for each of the distinct dimensions d below D.

    A standard deviation of 1/sqrt(d) keeps the embedded coordinates at INIT_SD for every d.

    Args:
        dims: the distinct dimensions.
        counts: fields of each.
        dim: D.
    """
    return nn.ParameterDict(
        {
            str(d): nn.Parameter(torch.randn(count, d, dim) / d**0.5)
            for d, count in zip(dims, counts, strict=True)
            if d < dim
        }
    )


def is_plain(embedding: FieldEmbedding) -> TypeGuard[MixedTables]:
    """Whether an embedding is served as the tables and projections that `MixedTables` trains."""
    return isinstance(embedding, MixedTables) and type(embedding).packed is MixedTables.packed
