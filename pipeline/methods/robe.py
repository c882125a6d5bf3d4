"""ROBE-Z. Desai, Chou, Shrivastava 2022, "Random Offset Block Embedding Array (ROBE) for CriteoTB Benchmark MLPerf
DLRM Model: 1000x Compression and 3.1x Faster Inference", MLSys.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.evidence import Evidence
from pipeline.data.schema import Schema
from pipeline.embeddings.batch import Occurrences
from pipeline.embeddings.contract import FieldEmbedding
from pipeline.embeddings.cost import fill_limit
from pipeline.embeddings.hashed_memory import Memory, SlotHash, constants, mixed
from pipeline.workflow.validation import Count


class BlockMemory(FieldEmbedding):
    """Coordinate i of value x of field e is g(e, x, i) M[(h(e, x, i // Z) + i mod Z) mod m].

    A vector consists of blocks of Z numbers. All blocks are read from one circular memory, each from a position of its
    own. Z = 1 hashes every number; Z = D reads a vector in one piece. (Some authors call the number of blocks Z.)

    Args:
        schema: F fields.
        dim: D; the last block is shorter if Z does not divide D.
        size: m, at least Z.
        block: Z, 1 to D.
        seed: of the hashes.
        sign: whether g is 1 or -1, by a hash; otherwise g is 1.

    NOTE[DIFF]: h is a mixing hash of field, id and block, not ((A e + B x + C c + D) mod P) mod m. A linear hash puts
    neighbouring ids at a constant distance, and ids are sorted by frequency.

    Raises:
        ValueError: if Z is out of range.
    """

    def __init__(self, schema: Schema, dim: int, size: int, block: int, seed: int, sign: bool) -> None:
        super().__init__()
        if not 1 <= block <= dim or size < block:
            raise ValueError(f"robe: block must be 1 to {dim=}, and at most {size=}, got {block=}")
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

    def vectors(self, occ: Occurrences) -> Tensor:
        keys = mixed(occ.rows + self.salt)[:, None]  # a row number stands for a field and an id
        values: Tensor = self.memory(self.cells(keys))
        return values * self.sign_hash.signs(keys, values.dtype) if self.sign else values

    def packed(self) -> dict[str, Tensor]:
        return {"table": self.memory.weight.detach()}


def derive(evidence: Evidence, *, block: Count = 8, sign: bool = False) -> Allocation:
    """A memory of as many numbers as the limit allows, at most as many as the full tables have.

    Args:
        block: Z; at most D is used.
        sign: see `BlockMemory`.

    Raises:
        TooFewBytes: if the limit is below Z numbers.
    """
    block = min(block, evidence.dim)

    def make(extra: int) -> Allocation:
        settings = {"size": block - 1 + extra, "block": block, "seed": evidence.seed, "sign": sign}
        return evidence.allocation(evidence.dim, settings)

    return fill_limit(evidence, build, make, evidence.schema.num_rows * evidence.dim - block + 1)


def build(schema: Schema, dim: int, allocation: Allocation) -> BlockMemory:
    return BlockMemory(schema, allocation.common_dim, **allocation.settings)
