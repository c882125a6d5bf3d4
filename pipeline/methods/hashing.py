"""Control: the hashing trick. Weinberger et al. 2009, "Feature Hashing for Large Scale Multitask Learning", ICML."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.budget import largest
from pipeline.allocation.evidence import Evidence
from pipeline.data.schema import Schema
from pipeline.embeddings.batch import Occurrences, spread
from pipeline.embeddings.contract import FieldEmbedding
from pipeline.embeddings.cost import spent
from pipeline.embeddings.hashed_memory import SlotHash, common_dim, constants, mixed
from pipeline.embeddings.mixed import MixedTables
from pipeline.embeddings.table import Table

search = None


class HashedTable(FieldEmbedding):
    """Every value has one of m rows, by a hash of its field and id; one table for all fields.

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
        """(U,) rows of a table of all fields, which stand for field and id -> (U,) rows of this one."""
        return self.hash(mixed(rows + self.salt)[:, None], len(self.table.weight))[:, 0]

    def forward(self, occ: Occurrences) -> Tensor:
        """Occurrences -> (B, F, D)."""
        distinct, place = torch.unique(self.slots(occ.rows), return_inverse=True)  # two values may share a slot
        return spread(self.table(distinct).index_select(0, place), occ)

    def packed(self) -> dict[str, Tensor]:
        return {"table": self.table.weight.detach()}


def derive(given: Evidence) -> Allocation:
    """As many rows as the limit allows, at most one for every value."""

    def made(rows: int) -> Allocation:
        return Allocation("hashing", dict.fromkeys(given.schema.names, given.dim), {"rows": rows, "seed": given.seed})

    def size(rows: int) -> int:
        return spent(build, given.schema, given.dim, made(rows)).bytes

    return made(largest(size, given.schema.num_rows, given.limit, "hashing"))


def build(schema: Schema, dim: int, allocation: Allocation) -> FieldEmbedding:
    if not allocation.settings:
        return MixedTables(schema, allocation.dims, dim)
    return HashedTable(schema, common_dim(allocation), **allocation.settings)
