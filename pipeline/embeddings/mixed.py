"""Tables of mixed dimension."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.data.schema import Schema
from pipeline.embeddings.batch import Occurrences, placed, spread
from pipeline.embeddings.contract import FieldEmbedding
from pipeline.embeddings.table import Table, grouped_matmul


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
