"""Control for MPE: the most frequent values of all fields have a row in 4 bits each, the others of a field share one.

It asks whether learned widths are better than a threshold on frequency.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.evidence import Evidence, Problem
from pipeline.data.schema import Field, Schema
from pipeline.embeddings.batch import Occurrences
from pipeline.embeddings.contract import FieldEmbedding
from pipeline.embeddings.cost import fill_limit
from pipeline.embeddings.frequency import by_frequency, most_frequent
from pipeline.embeddings.rounded import RoundedTables
from pipeline.embeddings.table import field_of


class FrequentRows(FieldEmbedding):
    """Rounded tables of the first ids of each field, which are the most frequent; all later ids share the last row.

    Args:
        schema: F fields.
        dim: D.
        rows: (F,) number of rows of each field, 1 to its cardinality; these numbers are stored and counted.
    """

    def __init__(self, schema: Schema, dim: int, rows: np.ndarray) -> None:
        super().__init__()
        self.dim = dim
        fields = zip(schema.names, rows.tolist(), strict=True)
        self.tables = RoundedTables(
            Schema(tuple(Field(name, number) for name, number in fields)), dict.fromkeys(schema.names, dim), dim, bits=4
        )
        self.register_buffer("rows", torch.tensor(rows, dtype=torch.int32))
        self.register_buffer("firsts", torch.tensor(schema.first_rows), persistent=False)

    rows: Tensor
    firsts: Tensor

    def _shared(self, occ: Occurrences, rows: Tensor) -> tuple[Occurrences, Tensor]:
        """The batch's distinct rows of the rounded tables, and for each row of the batch its place among them (U,)."""
        field = field_of(occ.ends, occ.rows)
        own = rows.long()
        ends = own.cumsum(0)
        shared = torch.minimum(occ.rows - self.firsts[field], own[field] - 1) + (ends - own)[field]
        distinct, place = torch.unique_consecutive(shared, return_inverse=True)
        return replace(occ, rows=distinct, ends=torch.searchsorted(distinct, ends, out_int32=True)), place

    def vectors(self, occ: Occurrences) -> Tensor:
        distinct, place = self._shared(occ, self.rows)
        return self.tables.vectors(distinct).index_select(0, place)

    def finish(self) -> None:
        self.tables.finish()

    def packed(self) -> dict[str, Tensor]:
        return {**self.tables.packed(), "index": self.rows}

    def lookup(self, packed: Mapping[str, Tensor], occ: Occurrences) -> Tensor:
        distinct, place = self._shared(occ, packed["index"])
        return self.tables.lookup(packed, distinct).index_select(0, place)


def find(problem: Problem) -> dict[str, np.ndarray]:
    """The rows by falling frequency in training; see `by_frequency`."""
    return by_frequency(problem)


def derive(evidence: Evidence) -> Allocation:
    """As many rows as the limit allows."""
    schema, order = evidence.schema, evidence.arrays["order"]

    def make(number: int) -> Allocation:
        rows = np.minimum(most_frequent(order, schema, number - 1) + 1, schema.cardinalities)
        return evidence.allocation(evidence.dim, arrays={"rows": rows.astype(np.int32)})

    return fill_limit(evidence, build, make, schema.num_rows)


def build(schema: Schema, dim: int, allocation: Allocation) -> FrequentRows:
    return FrequentRows(schema, allocation.common_dim, allocation.arrays["rows"])
