"""Control for CAFE: the most frequent values have a row each, and the others of a field share hashed rows.

CAFE (Zhang et al. 2024, SIGMOD, arXiv 2312.03256) calls this its offline form: the counts of the training rows say
which values are hot, and nothing changes in training. So no sketch has to be kept.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.evidence import Evidence, Problem
from pipeline.data.schema import Schema
from pipeline.embeddings.batch import Occurrences, placed
from pipeline.embeddings.contract import FieldEmbedding
from pipeline.embeddings.cost import fill_limit
from pipeline.embeddings.field_hash import FieldHash, hashed_sizes
from pipeline.embeddings.frequency import by_frequency, most_frequent
from pipeline.embeddings.table import Table
from pipeline.workflow.validation import Fraction


class HotAndHashed(FieldEmbedding):
    """A table for the first ids of each field, which are the most frequent, and one whose rows the other ids share.

    Args:
        schema: F fields.
        dim: D.
        hot: (F,) number of ids of each field that have a row of their own.
        hashed: number of hashed rows of all fields, about; see `hashed_sizes`.
        seed: of the hash.
    """

    def __init__(self, schema: Schema, dim: int, hot: np.ndarray, hashed: float, seed: int) -> None:
        super().__init__()
        self.dim = dim
        self.table = Table(int(hot.sum()), dim)
        sizes = hashed_sizes(schema.cardinalities - hot, hashed)
        self.shared = Table(int(sizes.sum()), dim)
        self.hash = FieldHash(schema, sizes, seed)
        self.register_buffer("hot", torch.tensor(hot, dtype=torch.int32))

    hot: Tensor

    def vectors(self, occ: Occurrences) -> Tensor:
        field = self.hash.fields(occ.rows)
        ids, hot = occ.rows - self.hash.firsts[field], self.hot.long()
        own = ids < hot[field]
        mine, others = own.nonzero()[:, 0], (~own).nonzero()[:, 0]
        rows = (ids + (hot.cumsum(0) - hot)[field])[mine]
        distinct, place = torch.unique(self.hash(occ.rows[others]), return_inverse=True)
        return placed(torch.cat([mine, others]), self.table(rows), self.shared(distinct).index_select(0, place))

    def packed(self) -> dict[str, Tensor]:
        return {"table.hot": self.table.weight.detach(), "table.shared": self.shared.weight.detach(), "index": self.hot}


def find(problem: Problem) -> dict[str, np.ndarray]:
    """The rows by falling frequency in training; see `by_frequency`."""
    return by_frequency(problem)


def derive(evidence: Evidence, *, share: Fraction = 0.3) -> Allocation:
    """As many hot rows as the limit allows, and hashed rows in a fixed proportion to them.

    Args:
        share: of the rows that are hashed.
    """
    schema, order = evidence.schema, evidence.arrays["order"]

    def make(number: int) -> Allocation:
        hot = most_frequent(order, schema, number)
        settings = {"hashed": number * share / (1 - share), "seed": evidence.seed}
        return evidence.allocation(evidence.dim, settings, {"hot": hot.astype(np.int32)})

    return fill_limit(evidence, build, make, schema.num_rows)


def build(schema: Schema, dim: int, allocation: Allocation) -> HotAndHashed:
    return HotAndHashed(schema, allocation.common_dim, allocation.arrays["hot"], **allocation.settings)
