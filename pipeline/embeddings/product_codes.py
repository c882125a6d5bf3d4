"""Product quantisation: a value's vector is a few codes, each of which names a centroid for a group of coordinates.

Jégou, Douze & Schmid 2011, "Product Quantization for Nearest Neighbor Search": D coordinates fall into G groups of
D / G; each group has a codebook of K centroids, and a vector is stored as the numbers of its G centroids, that is as
G ceil(log2 K) bits. What differs between methods is how vectors and centroids are learned: `ProductQuantised` holds
what they share.

One codebook for each group serves all fields. Codebooks of each field's own would take as many times the bytes as
there are coded fields: next to nothing beside a million values, but most of a small budget for a few thousand, paid
with coarser codes. A field that has no more values than a codebook has centroids keeps vectors of its own, which
take no more bytes than such a codebook would.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.budget import TooFewBytes
from pipeline.allocation.evidence import Evidence
from pipeline.data.schema import Schema
from pipeline.embeddings.batch import Occurrences, spread
from pipeline.embeddings.contract import FieldEmbedding
from pipeline.embeddings.cost import Build, spent
from pipeline.embeddings.packed_codes import PackedCodes, bits
from pipeline.embeddings.table import INIT_SD, Table

OFFERED = (2, 4, 8, 16, 32, 64, 128, 256)  # centroids that `finest` may choose
PATIENCE = 100  # steps that no row may use a centroid before it starts anew
CHUNK = 8192  # rows whose codes are settled at a time; a multiple of 8, so that they fill bytes
CACHED = 256  # rows that are compared with all centroids at a time, which then stays in the caches


class ProductQuantised(FieldEmbedding):
    """Vectors from codes and codebooks for large fields, from a plain table for small ones.

    In training every row has a vector of its own, its query, in a table that is not served. `finish` settles the
    codes. The rows of a field come in tiers by falling frequency, that is by id, and those of a tier may use the
    first so many centroids of every codebook (Kang et al. 2020).

    Args:
        schema: F fields.
        dim: D.
        groups: G, a divisor of D.
        centroids: K of each tier, falling; one number if there are no tiers.
        shares: of each tier but the last, its share of each field's values; a part of a value is rounded up.

    Attributes:
        small: names of the fields that are not coded.
    """

    table: Table | None
    queries: Table | None

    def __init__(
        self, schema: Schema, dim: int, *, groups: int, centroids: Sequence[int], shares: Sequence[float] = ()
    ) -> None:
        super().__init__()
        if groups < 1 or dim % groups:
            raise ValueError(f"groups must divide the dimension {dim}, however: {groups=}")
        if list(centroids) != sorted(centroids, reverse=True) or len(shares) != len(centroids) - 1:
            raise ValueError(
                f"centroids must fall from tier to tier, and shares name all tiers but the last, however: "
                f"{centroids=}, {shares=}"
            )
        self.dim, self.groups, self.centroids = dim, groups, list(centroids)
        if any(not 0 < share < 1 for share in shares) or sum(shares) >= 1:
            raise ValueError(f"shares of tiers must lie above 0 and add up to less than 1, however: {shares=}")
        coded = [field.cardinality > max(centroids) for field in schema.fields]
        self.small = tuple(name for name, yes in zip(schema.names, coded, strict=True) if not yes)
        ends, shifts, tiers, sizes = [], [], [], []  # of segments, each of which is a field, or a tier of one
        taken = {True: 0, False: 0}  # rows of either table
        for first, number, yes in zip(schema.first_rows.tolist(), schema.cardinalities.tolist(), coded, strict=True):
            cuts = [math.ceil(number * share - 1e-9) for share in np.cumsum(shares).tolist()] if yes else []
            for tier, (start, stop) in enumerate(zip([0, *cuts], [*cuts, number], strict=True)):
                ends.append(first + stop)
                shifts.append(taken[yes] - first)
                tiers.append(tier if yes else -1)
                sizes.append(stop - start)
            taken[yes] += number
        self.table = Table(taken[False], dim) if taken[False] else None
        self.queries = Table(taken[True], dim) if taken[True] else None
        places = [s for s, tier in enumerate(tiers) if tier >= 0]  # segments that are coded
        self.tiers = [tiers[s] for s in places]
        self.codes = PackedCodes([sizes[s] for s in places], groups, [self.centroids[tier] for tier in self.tiers])
        coded_number = np.cumsum([tier >= 0 for tier in tiers]) - 1
        self.register_buffer("ends", torch.tensor(ends), persistent=False)
        self.register_buffer("about", torch.tensor([shifts, tiers, coded_number.tolist()]), persistent=False)
        self.register_buffer("settled", torch.tensor(False))

    ends: Tensor
    about: Tensor
    settled: Tensor

    # What a method has to say

    def books(self) -> Tensor:
        """(G, K, D / G): the codebooks that are served."""
        raise NotImplementedError(f"{type(self).__name__} must define books()")

    def quantised(self, queries: Tensor, tiers: Tensor) -> Tensor:
        """Vectors (u, D) in place of the queries (u, D) of distinct rows of tiers (u,), until codes are settled."""
        raise NotImplementedError(f"{type(self).__name__} must define quantised(queries, tiers)")

    def nearest(self, queries: Tensor, tier: int) -> Tensor:
        """Queries (u, D) of a tier -> (u, G) codes."""
        raise NotImplementedError(f"{type(self).__name__} must define nearest(queries, tier)")

    # What all have in common

    def forward(self, occ: Occurrences) -> Tensor:
        """Occurrences -> (B, F, D)."""
        if self.settled:
            return self.lookup(self.packed(), occ)
        segments, rows = self._placed(occ)
        tiers = self.about[1][segments]
        values = rows.new_empty((len(rows), self.dim), dtype=torch.get_default_dtype())
        if self.table is not None:
            here = (tiers < 0).nonzero()[:, 0]
            values = values.index_copy(0, here, self.table(rows[here]))
        if self.queries is not None:
            here = (tiers >= 0).nonzero()[:, 0]
            values = values.index_copy(0, here, self.quantised(self.queries(rows[here]), tiers[here]))
        return spread(values, occ)

    def _placed(self, occ: Occurrences) -> tuple[Tensor, Tensor]:
        """Of each of the batch's rows its segment, and its number in the table that it is in."""
        segments = torch.searchsorted(self.ends, occ.rows, right=True)
        return segments, occ.rows + self.about[0][segments]

    @torch.no_grad()
    def finish(self) -> None:
        if self.queries is None:
            return
        for segment, tier, start, queries in self._chunks():
            self.codes.write(segment, start, self.nearest(queries, tier))
        self.settled.fill_(True)

    def _chunks(self) -> Iterator[tuple[int, int, int, Tensor]]:
        """All queries: coded segment, tier, place in the segment, (n, D)."""
        assert self.queries is not None
        for segment, (tier, first, number) in enumerate(
            zip(self.tiers, self.codes.firsts, self.codes.numbers, strict=True)
        ):
            for start in range(0, number, CHUNK):
                stop = min(number, start + CHUNK)
                yield segment, tier, start, self.queries.weight.detach()[first + start : first + stop]

    @torch.no_grad()
    def perplexity(self) -> Tensor:
        """Code usage (G,): exponential of the entropy of each group's codes over all coded rows.

        It is K where all centroids serve equally many rows, and 1 where one serves them all.

        Raises:
            ValueError: if no field is coded.
        """
        if self.queries is None:
            raise ValueError(f"no field has more than {max(self.centroids)} values, so none is coded")
        counts = torch.zeros(self.groups, max(self.centroids), device=self.queries.weight.device)
        for segment, tier, start, queries in self._chunks():
            if self.settled:
                rows = torch.arange(start, start + len(queries), device=queries.device) + self.codes.firsts[segment]
                codes = self.codes.read(self.codes.data, rows, torch.full_like(rows, segment))
            else:
                codes = self.nearest(queries, tier)
            counts.scatter_add_(1, codes.T, torch.ones_like(codes.T, dtype=counts.dtype))
        return torch.special.entr(counts / counts.sum(1, keepdim=True)).sum(1).exp()

    def packed(self) -> dict[str, Tensor]:
        kept = {} if self.table is None else {"table": self.table.weight.detach()}
        return kept | ({} if self.queries is None else {"code": self.codes.data, "codebook": self.books().detach()})

    def lookup(self, packed: Mapping[str, Tensor], occ: Occurrences) -> Tensor:
        """Reads the codes of the batch's rows alone."""
        segments, rows = self._placed(occ)
        _, tiers, coded = self.about[:, segments]
        values = torch.empty(len(rows), self.dim, device=rows.device)
        if "table" in packed:
            here = (tiers < 0).nonzero()[:, 0]
            values[here] = packed["table"][rows[here]]
        if "code" in packed:
            here = (tiers >= 0).nonzero()[:, 0]
            codes = self.codes.read(packed["code"], rows[here], coded[here])
            values[here] = decode(codes, packed["codebook"])
        return spread(values, occ)


def decode(codes: Tensor, books: Tensor) -> Tensor:
    """Codes (u, G) of codebooks (G, K, D / G) -> (u, D)."""
    groups, number, width = books.shape
    flat = codes + number * torch.arange(groups, device=codes.device)
    return books.reshape(groups * number, width).index_select(0, flat.flatten()).view(len(codes), groups * width)


@torch.no_grad()
def closest(vectors: Tensor, books: Tensor) -> Tensor:
    """Vectors (u, D), codebooks (G, K, D / G) -> (u, G): the centroid at the least Euclidean distance."""
    groups, _, width = books.shape
    lengths = -0.5 * books.square().sum(2)[:, None]
    found = []
    for chunk in vectors.view(len(vectors), groups, width).split(CACHED):
        scores = torch.baddbmm(lengths, chunk.transpose(0, 1), books.transpose(1, 2))  # (G, n, K)
        found.append(scores.max(2).indices)  # twice as fast as argmax
    return torch.cat(found, 1).T


class NearestCentroids(ProductQuantised):
    """DPQ-VX: a query is replaced by its nearest centroids, which are pulled towards the queries that they replace.

    Chen, Li & Sun 2020, "Differentiable Product Quantization for End-to-End Embedding Compression", ICML, section 3.2:

        c = argmin_k |q - K_k|^2,   out = q + sg(K_c - q),   loss + |sg(q) - K_c|^2 + commitment |q - sg(K_c)|^2

    for each group, sg being no gradient. The task trains the queries, the second term the centroids.

    NOTE[DIFF]: the two terms are means over the distinct rows of a batch, not over its tokens: a step then costs no
    more than its rows do, and a centroid serves rare values as well as frequent ones.

    Args:
        commitment: weight of the last term; the authors' code has 0.
    """

    def __init__(
        self,
        schema: Schema,
        dim: int,
        *,
        groups: int,
        centroids: Sequence[int],
        shares: Sequence[float] = (),
        commitment: float = 0.0,
    ) -> None:
        super().__init__(schema, dim, groups=groups, centroids=centroids, shares=shares)
        self.commitment = commitment
        if self.queries is not None:
            self.book = nn.Parameter(INIT_SD * torch.randn(groups, max(centroids), dim // groups))
            self.register_buffer("idle", torch.zeros(groups, max(centroids), dtype=torch.int32))  # steps without use
        self.pull: Tensor | None = None  # of the latest batch

    idle: Tensor

    def books(self) -> Tensor:
        return self.book

    def nearest(self, queries: Tensor, tier: int) -> Tensor:
        return closest(queries, self.book.detach()[:, : self.centroids[tier]])

    def quantised(self, queries: Tensor, tiers: Tensor) -> Tensor:
        if self.training:
            self._restart(queries.detach())
        codes = torch.empty(len(queries), self.groups, dtype=torch.long, device=queries.device)
        for tier in range(len(self.centroids)):
            here = (tiers == tier).nonzero()[:, 0]
            codes[here] = self.nearest(queries.detach()[here], tier)
        found = decode(codes, self.book)
        if self.training:
            self.idle.add_(1).scatter_(1, codes.T, 0)
            self.pull = (found - queries.detach()).square().sum(1).mean()
            if self.commitment:
                self.pull = self.pull + self.commitment * (queries - found.detach()).square().sum(1).mean()
        return found.detach() + (queries - queries.detach())  # bit for bit what is served

    @torch.no_grad()
    def _restart(self, queries: Tensor) -> None:
        group, centroid = (self.idle >= PATIENCE).nonzero().T
        if len(group) and len(queries):
            drawn = torch.randint(len(queries), group.shape, device=queries.device)
            self.book[group, centroid] = queries.view(len(queries), self.groups, -1)[drawn, group]
            self.idle[group, centroid] = 0

    def objective(self, loss: Tensor, part: str) -> Tensor:
        pull, self.pull = self.pull, None
        return loss if pull is None else loss + pull


def finest(given: Evidence, build: Build, offered: Sequence[Allocation]) -> Allocation:
    """Of the allocations that fit the limit, the one with the most bits a row; ties to the most centroids, then bytes.

    A row of G codes tells 2 ** (G log2 K) vectors apart, and at a high rate the error falls by a factor of 4 for every
    D bits, however they are shared out. Of equal numbers of bits fewer, wider groups err less: they have the
    dependence between their coordinates to make use of.

    Raises:
        TooFewBytes: if none fits; says the least bytes of any.
    """
    sizes = [spent(build, given.schema, given.dim, allocation).bytes for allocation in offered]
    fitting = [i for i, size in enumerate(sizes) if size <= given.limit]
    if not fitting:
        raise TooFewBytes(
            f"{offered[0].method}: no codes take {given.limit:,} bytes or less, the least is {min(sizes):,}; "
            "raise the budget, or leave groups and centroids to it"
        )

    def fineness(i: int) -> tuple[int, ...]:
        groups, centroids = offered[i].settings["groups"], offered[i].settings["centroids"]
        return (*(groups * bits(k) for k in reversed(centroids)), *reversed(centroids), -sizes[i])

    return offered[max(fitting, key=fineness)]


def divisors(dim: int, most: int | None = None) -> list[int]:
    """Numbers of groups that D coordinates can be split into, up to ``most``."""
    return [g for g in range(1, (most or dim) + 1) if dim % g == 0]


def check_dims(allocation: Allocation, dim: int) -> None:
    """Refuse other dimensions than D: codes are of whole vectors."""
    wrong = {name: d for name, d in allocation.dims.items() if d != dim}
    if wrong:
        raise ValueError(f"{allocation.method} gives every field that it keeps the dimension {dim}, however: {wrong}")
