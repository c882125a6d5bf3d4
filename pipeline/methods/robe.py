"""ROBE-Z. Desai, Chou, Shrivastava 2022, "Random Offset Block Embedding Array (ROBE) for CriteoTB Benchmark MLPerf
DLRM Model: 1000x Compression and 3.1x Faster Inference", MLSys."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.budget import largest
from pipeline.allocation.evidence import Evidence
from pipeline.data.schema import Schema
from pipeline.embeddings.batch import Occurrences, spread
from pipeline.embeddings.contract import FieldEmbedding
from pipeline.embeddings.cost import spent
from pipeline.embeddings.hashed_memory import Memory, SlotHash, common_dim, constants, mixed
from pipeline.embeddings.mixed import MixedTables
from pipeline.workflow.plug import Least

search = None


class BlockMemory(FieldEmbedding):
    """Coordinate i of value x of field e is g(e, x, i) M[(h(e, x, i // Z) + i mod Z) mod m].

    A vector is made of blocks of Z numbers that are read from one memory, from anywhere in it on, around its end.
    Z = 1 hashes every number, Z = D reads a vector in one piece. (Others call the number of blocks Z.)

    Args:
        schema: F fields.
        dim: D; its last block is shorter where Z does not divide it.
        size: m, at least Z.
        block: Z, 1 to D.
        seed: of the hashes.
        sign: whether g is 1 or -1 by a hash; 1 otherwise.

    NOTE[DIFF]: h is not ((A e + B x + C c + D) mod P) mod m but a mixing hash of field, id and block: a linear one
    puts neighbouring ids at a constant distance, and ids are sorted by frequency.
    """

    def __init__(self, schema: Schema, dim: int, size: int, block: int, seed: int, sign: bool) -> None:
        super().__init__()
        if not 1 <= block <= dim or size < block:
            raise ValueError(f"robe: block must lie between 1 and {dim=}, and {size=} hold it, however: {block=}")
        self.dim, self.block, self.sign = dim, block, sign
        self.memory = Memory(size)
        self.hash = SlotHash(-(-dim // block), seed, 0)
        self.sign_hash = SlotHash(dim, seed, 1)
        self.register_buffer("salt", constants(seed, 4, 1), persistent=False)
        self.register_buffer("steps", torch.arange(block, device="cpu"), persistent=False)

    salt: Tensor
    steps: Tensor

    def cells(self, keys: Tensor) -> Tensor:
        """Keys (U, 1) -> (U, D) positions in the memory."""
        size = len(self.memory.weight)
        starts = self.hash(keys, size)  # (U, blocks)
        cells = (starts[:, :, None] + self.steps).flatten(1)[:, : self.dim]
        return torch.where(cells >= size, cells - size, cells)

    def forward(self, occ: Occurrences) -> Tensor:
        """Occurrences -> (B, F, D)."""
        keys = mixed(occ.rows + self.salt)[:, None]  # the row of a table of all fields stands for field and id
        values: Tensor = self.memory(self.cells(keys))
        if self.sign:
            values = values * self.sign_hash.signs(keys, values.dtype)
        return spread(values, occ)

    def packed(self) -> dict[str, Tensor]:
        return {"table": self.memory.weight.detach()}


def derive(given: Evidence, *, block: Annotated[int, Least(1)] = 8, sign: bool = False) -> Allocation:
    """As many numbers as the limit allows, at most as many as the full tables have.

    Args:
        block: Z; more than D counts as D.
        sign: see `BlockMemory`.
    """
    block = min(block, given.dim)

    def made(extra: int) -> Allocation:
        settings = {"size": block - 1 + extra, "block": block, "seed": given.seed, "sign": sign}
        return Allocation("robe", dict.fromkeys(given.schema.names, given.dim), settings)

    def size(extra: int) -> int:
        return spent(build, given.schema, given.dim, made(extra)).bytes

    most = given.schema.num_rows * given.dim
    return made(largest(size, most - block + 1, given.limit, "robe"))


def build(schema: Schema, dim: int, allocation: Allocation) -> FieldEmbedding:
    if not allocation.settings:
        return MixedTables(schema, allocation.dims, dim)
    return BlockMemory(schema, common_dim(allocation), **allocation.settings)
