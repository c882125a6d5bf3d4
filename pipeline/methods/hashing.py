"""Control: the hashing trick. Weinberger et al. 2009, "Feature Hashing for Large Scale Multitask Learning", ICML."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.evidence import Evidence
from pipeline.data.schema import Schema
from pipeline.embeddings.batch import Occurrences
from pipeline.embeddings.contract import FieldEmbedding
from pipeline.embeddings.cost import fill_limit
from pipeline.embeddings.hashed_memory import SlotHash, constants, mixed
from pipeline.embeddings.table import Table


class HashedTable(FieldEmbedding):
    """One table of m rows for all fields; a hash of field and id chooses the row of a value.

    Args:
        schema: F fields.
        dim: D.
        rows: m.
        seed: of the hash.
    """

    def __init__(self, schema: Schema, dim: int, rows: int, seed: int) -> None:
        super().__init__()
        self.dim = dim
        self.table = Table(rows, dim)
        self.hash = SlotHash(1, seed, 0)
        self.register_buffer("salt", constants(seed, 2, 1), persistent=False)

    salt: Tensor

    def slots(self, rows: Tensor) -> Tensor:
        """(U,) rows of this table, for rows (U,) of a table without hashing, where a row is a field and an id."""
        return self.hash(mixed(rows + self.salt)[:, None], len(self.table.weight))[:, 0]

    def vectors(self, occ: Occurrences) -> Tensor:
        distinct, place = torch.unique(self.slots(occ.rows), return_inverse=True)  # several values may share a slot
        return self.table(distinct).index_select(0, place)

    def packed(self) -> dict[str, Tensor]:
        return {"table": self.table.weight.detach()}


def derive(evidence: Evidence) -> Allocation:
    """A table with as many rows as the limit allows, at most one for every value."""

    def make(rows: int) -> Allocation:
        return evidence.allocation(evidence.dim, {"rows": rows, "seed": evidence.seed})

    return fill_limit(evidence, build, make, evidence.schema.num_rows)


def build(schema: Schema, dim: int, allocation: Allocation) -> HashedTable:
    return HashedTable(schema, allocation.common_dim, **allocation.settings)
