"""CAFE: rows for values that matter, found while training, and hashed rows for all others.

Zhang et al. 2024, "CAFE: Towards Compact, Adaptive, and Fast Embedding for Large-scale Recommendation Models", SIGMOD,
arXiv 2312.03256. A sketch of buckets with four slots each scores the values by the norms of their gradients. A value
whose score reaches a threshold gets a row of its own, if one is free; it starts as a copy of the value's hashed row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.budget import TooFewBytes
from pipeline.allocation.evidence import Evidence
from pipeline.data.schema import Schema
from pipeline.embeddings.batch import Occurrences, placed, spread
from pipeline.embeddings.contract import FieldEmbedding
from pipeline.embeddings.cost import fill_limit
from pipeline.embeddings.field_hash import FieldHash, hashed_sizes
from pipeline.embeddings.hashed_memory import SlotHash, constants, mixed
from pipeline.embeddings.table import Table
from pipeline.workflow.validation import Fraction, Positive

SLOTS = 4  # of a bucket
SLOT_BYTES = 12  # a value, its score and its row
ROOM = 10  # times the number of hot rows times the threshold: the sum of scores above which they decay
DECAY = 0.99
SMALL = 2000  # times the share of the budget: a field with at most so many values has full tables
NONE = -1


class HotSketch(nn.Module):
    """The scores of values, in H buckets of four slots; a hash of the value chooses its bucket.

    A value that is in its bucket adds to its score. Another takes an empty slot, or else the slot with the least score,
    if that is not hot, and adds to the score in it (Metwally et al. 2005, Space-Saving).

    Args:
        buckets: H, also the number of hot rows.
        threshold: the least score of a hot value; None for the sum of all scores / (10 H). That is the least threshold
            with which scores do not decay.
        seed: of the hash.

    NOTE[DIFF]: with the authors' thresholds of 20 to 500, which fit tens of millions of rows, a small data set would
    soon have more values above the threshold than hot rows, and the first would keep theirs. So the threshold is by
    default a share of the sum of scores, and scores decay at every update.
    NOTE[DIFF]: a slot is chosen by its least score. The authors move a slot up by one place at each insertion, which
    keeps the order only roughly. All occurrences of a value in a batch are one insertion of their sum.
    NOTE[DIFF]: the bucket is a hash of the value. In the authors' code it is the value's number modulo H.
    """

    def __init__(self, buckets: int, threshold: float | None, seed: int) -> None:
        super().__init__()
        self.fixed = threshold
        self.hash = SlotHash(1, seed, 1)
        self.register_buffer("salt", constants(seed, 4, 1), persistent=False)
        self.register_buffer("values", torch.full((buckets, SLOTS), NONE, dtype=torch.int32))
        self.register_buffer("scores", torch.zeros(buckets, SLOTS))
        self.register_buffer("rows", torch.full((buckets, SLOTS), NONE, dtype=torch.int32))

    salt: Tensor
    values: Tensor
    scores: Tensor
    rows: Tensor

    def buckets(self, values: Tensor) -> Tensor:
        """Values (u,) -> their buckets (u,)."""
        slots: Tensor = self.hash(mixed(values + self.salt)[:, None], len(self.values))[:, 0]
        return slots

    def hot(self, values: Tensor) -> Tensor:
        """Values (u,) -> (u,) int64 hot row of each, or -1."""
        bucket = self.buckets(values)
        found = self.values[bucket] == values[:, None]
        return torch.where(found, self.rows[bucket], NONE).amax(1).long()

    def threshold(self) -> Tensor:
        """The least score of a hot value: ()."""
        if self.fixed is not None:
            return self.scores.new_tensor(self.fixed)
        return self.scores.sum() / (ROOM * len(self.scores))

    @torch.no_grad()
    def update(self, values: Tensor, importance: Tensor) -> tuple[Tensor, Tensor]:
        """Add to the scores, promote and demote values; see the class.

        Args:
            values: (u,) distinct.
            importance: (u,) what each adds.

        Returns:
            (p,) values that are promoted, and (p,) their hot rows.
        """
        self._insert(values, importance)
        promoted = self._promote()
        if self.fixed is None or self.scores.sum() > ROOM * len(self.scores) * self.fixed:
            self.scores.mul_(DECAY)
            self.rows.masked_fill_(self.scores < self.threshold(), NONE)
        return promoted

    def _insert(self, values: Tensor, importance: Tensor) -> None:
        """Insert value after value. Buckets are independent, so each round inserts the next value of every bucket."""
        bucket, order = torch.sort(self.buckets(values), stable=True)
        _, counts = torch.unique_consecutive(bucket, return_counts=True)
        firsts = (counts.cumsum(0) - counts).repeat_interleave(counts)
        turn = torch.arange(len(bucket), device=bucket.device) - firsts
        for r in range(int(counts.max()) if len(counts) else 0):
            here = (turn == r).nonzero()[:, 0]
            b, value, added = bucket[here], values[order[here]], importance[order[here]]
            held, scores = self.values[b], self.scores[b]
            found = held == value[:, None]
            known = found.any(1)
            slot = torch.where(known, found.int().argmax(1), scores.masked_fill(held == NONE, -1).argmin(1))
            allowed = known | (self.rows[b, slot] == NONE)
            b, slot, value, added = b[allowed], slot[allowed], value[allowed], added[allowed]
            self.values[b, slot] = value.int()
            self.scores[b, slot] += added

    def _promote(self) -> tuple[Tensor, Tensor]:
        used = self.rows[self.rows != NONE].long()
        free = torch.ones(len(self.rows), dtype=torch.bool, device=used.device).index_fill_(0, used, False).nonzero()
        waiting = (self.rows == NONE) & (self.values != NONE) & (self.scores >= self.threshold())
        places = waiting.flatten().nonzero()[:, 0]
        best = torch.sort(self.scores.flatten()[places], descending=True, stable=True).indices[: len(free)]
        places, rows = places[best], free[: len(best), 0]
        self.rows.view(-1)[places] = rows.int()
        return self.values.flatten()[places].long(), rows


class AdaptiveRows(FieldEmbedding):
    """Hot rows for the values that a sketch finds, hashed rows for the others, and plain rows for small fields.

    The importance of an occurrence is the norm of the loss's gradient in its vector, divided by the mean of these norms
    over the batch and the field. In training, each backward pass updates the sketch. `finish` fixes it. The sketch is
    counted: a served model needs the values and their rows, and the scores to be trained on new rows.

    NOTE[DIFF]: a hot row starts as the hashed row of the same value. In the authors' code it starts as that of the
    value with the same number within its field. And the sketch is saved with the model, which theirs is not.
    NOTE[DIFF]: the moments of the optimiser stay with a hot row if it passes to another value.

    Args:
        schema: F fields.
        dim: D.
        hot: H, number of hot rows.
        hashed: number of hashed rows of all fields, about; see `hashed_sizes`.
        plain: names of the fields whose values all have rows.
        threshold: of `HotSketch`.
        seed: of the hashes.
    """

    divisible = False  # importance is measured in the gradients of all rows of a batch

    def __init__(
        self,
        schema: Schema,
        dim: int,
        *,
        hot: int,
        hashed: float,
        plain: Sequence[str],
        threshold: float | None,
        seed: int,
    ) -> None:
        super().__init__()
        self.dim = dim
        is_plain = np.isin(schema.names, plain)
        own = schema.cardinalities * is_plain
        sizes = hashed_sizes(schema.cardinalities - own, hashed)
        self.table = Table(int(own.sum()), dim) if own.any() else None
        self.hot = Table(hot, dim)
        self.shared = Table(int(sizes.sum()), dim)
        self.hash = FieldHash(schema, sizes, seed)
        self.sketch = HotSketch(hot, threshold, seed)
        self.register_buffer("is_plain", torch.tensor(is_plain), persistent=False)
        self.register_buffer("shift", torch.tensor(own.cumsum() - own - schema.first_rows), persistent=False)
        self.register_buffer("settled", torch.tensor(False))

    is_plain: Tensor
    shift: Tensor
    settled: Tensor

    def forward(self, occ: Occurrences) -> Tensor:
        embedded = spread(self.vectors(occ), occ)
        if self.training and embedded.requires_grad and not bool(self.settled):
            embedded.register_hook(lambda gradient: self._learn(occ, gradient))
        return embedded

    def vectors(self, occ: Occurrences) -> Tensor:
        field = self.hash.fields(occ.rows)
        plain, hot = self.is_plain[field], self.sketch.hot(occ.rows)
        hot = torch.where(plain, NONE, hot)
        kinds = [(~plain & (hot == NONE)).nonzero()[:, 0], (hot != NONE).nonzero()[:, 0]]
        parts = [_several(self.shared, self.hash(occ.rows[kinds[0]])), _several(self.hot, hot[kinds[1]])]
        if self.table is not None:
            kinds.append(plain.nonzero()[:, 0])
            parts.append(self.table((occ.rows + self.shift[field])[kinds[2]]))
        return placed(torch.cat(kinds), *parts)

    @torch.no_grad()
    def _learn(self, occ: Occurrences, gradient: Tensor) -> None:
        """Update the sketch by the gradient (B, F, D) of a batch, and start the rows of promoted values."""
        importance = self.importance(occ, gradient)
        wanted = (importance > 0) & ~self.is_plain[self.hash.fields(occ.rows)]
        values, rows = self.sketch.update(occ.rows[wanted], importance[wanted])
        self.hot.weight[rows] = self.shared.weight[self.hash(values)]

    @staticmethod
    def importance(occ: Occurrences, gradient: Tensor) -> Tensor:
        """(U,) importance of the distinct rows of a batch, from the gradient (B, F, D) in its vectors."""
        norms = gradient.norm(dim=-1)
        means = occ.sums(norms) / occ.bags_per_field()
        relative = (norms / occ.to_bags(means).clamp(min=1e-30)).flatten()
        of_occurrences = relative if occ.bags is None else relative[occ.bags]
        if occ.weights is not None:
            of_occurrences = of_occurrences * occ.weights
        return torch.zeros(len(occ.rows), device=norms.device).index_add_(0, occ.inverse, of_occurrences.float())

    def finish(self) -> None:
        self.settled.fill_(True)

    def packed(self) -> dict[str, Tensor]:
        kept = {} if self.table is None else {"table.plain": self.table.weight.detach()}
        kept |= {"table.hot": self.hot.weight.detach(), "table.shared": self.shared.weight.detach()}
        sketch = self.sketch
        return kept | {"sketch.values": sketch.values, "sketch.scores": sketch.scores, "sketch.rows": sketch.rows}


def _several(table: Table, rows: Tensor) -> Tensor:
    """Look up rows (u,) in any order, several times if they repeat: -> (u, D)."""
    distinct, place = torch.unique(rows, return_inverse=True)
    return table(distinct).index_select(0, place)


def derive(evidence: Evidence, *, share: Fraction = 0.5, threshold: Positive | None = None) -> Allocation:
    """As many hot rows as the limit allows, and hashed rows in a fixed proportion to their bytes.

    Fields of at most 2,000 c values have plain tables, where c is the limit's share of the full tables' bytes, unless
    these tables leave no room for a hot row.

    Args:
        share: of the hashed rows in the bytes of hot and hashed rows; .5 on Criteo at 10x, .3 at 100x in the paper.
        threshold: of `HotSketch`; 20 on Criteo at 10x, 100 at 100x in the paper.

    Raises:
        TooFewBytes: if the limit is too small for a hot row and a hashed row of each field.
    """
    schema, dim = evidence.schema, evidence.dim
    most = SMALL * evidence.limit / evidence.full_bytes
    small = [field.name for field in schema.fields if field.cardinality <= most]
    per_hot = share / (1 - share) * (1 + SLOTS * SLOT_BYTES / (4 * dim))  # hashed rows for each hot row

    def filled(plain: list[str]) -> Allocation:
        def make(hot: int) -> Allocation:
            settings = {"hot": hot, "hashed": hot * per_hot, "plain": plain, "threshold": threshold}
            return evidence.allocation(dim, settings | {"seed": evidence.seed})

        return fill_limit(evidence, build, make, schema.num_rows)

    if 0 < len(small) < len(schema):
        try:
            return filled(small)
        except TooFewBytes:
            pass
    return filled([])


def build(schema: Schema, dim: int, allocation: Allocation) -> AdaptiveRows:
    return AdaptiveRows(schema, allocation.common_dim, **allocation.settings)
