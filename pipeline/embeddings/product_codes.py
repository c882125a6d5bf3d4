"""Product quantisation: a value's vector is a few codes, and each code names a centroid for a group of coordinates.

Jégou, Douze & Schmid 2011, "Product Quantization for Nearest Neighbor Search": D coordinates are split into G groups of
D / G. Each group has a codebook of K centroids, and a vector is stored as the numbers of its G centroids, in
G ceil(log2 K) bits. Methods differ in how they learn vectors and centroids; `ProductQuantised` is their common part.

All fields share the codebook of a group. With codebooks of its own for each coded field, the bytes of codebooks would
be multiplied by the number of coded fields. That is negligible for a million values, but for a few thousand values it
is most of a small budget, and codes would be coarser. A field with at most K values keeps its vectors, which take no
more bytes than a codebook of its own would.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.budget import TooFewBytes
from pipeline.allocation.evidence import Evidence
from pipeline.data.schema import Schema
from pipeline.embeddings.batch import Occurrences
from pipeline.embeddings.contract import FieldEmbedding
from pipeline.embeddings.cost import Build, spent
from pipeline.embeddings.packed_codes import PackedCodes, bits
from pipeline.embeddings.table import INIT_SD, Table

Centroids = Annotated[int, Field(ge=2)]  # the option for the number of centroids of a codebook
OFFERED = (2, 4, 8, 16, 32, 64, 128, 256)  # numbers of centroids that methods try
PATIENCE = 100  # steps after which a centroid that no row uses is drawn again
CHUNK = 8192  # rows whose codes are assigned at a time; a multiple of 8, so that they fill whole bytes
CACHED = 256  # rows that are compared with all centroids at a time; the products then fit in the caches


class ProductQuantised(FieldEmbedding):
    """Vectors from codes and codebooks for large fields, and from a plain table for small fields.

    In training, every row of a large field has a vector of its own, its query, in a table that is not served. `finish`
    assigns the codes. They stay as they are if the embedding is trained after that: then the codebooks and the plain
    table learn, and the queries are no longer used. The rows of a field may be divided into tiers by falling frequency,
    that is by id. The rows of a tier use only the first centroids of every codebook, a number for each tier (Kang et
    al. 2020).

    Args:
        schema: F fields.
        dim: D.
        groups: G, a divisor of D.
        centroids: number of centroids of each tier, falling; the first is K; one number if there are no tiers.
        shares: share of each field's values in each tier but the last, rounded up to whole values.
        fixed: whether the codes are known before training, so that there are no queries.

    Raises:
        ValueError: if groups, centroids or shares are not like that.

    Attributes:
        small: names of the fields that are not coded.
        coded_rows: (n,) int64 for each row of the queries, its row in the table of all fields.
    """

    table: Table | None
    queries: Table | None

    def __init__(
        self,
        schema: Schema,
        dim: int,
        *,
        groups: int,
        centroids: Sequence[int],
        shares: Sequence[float] = (),
        fixed: bool = False,
    ) -> None:
        super().__init__()
        if groups < 1 or dim % groups:
            raise ValueError(f"groups must divide the dimension {dim}, got {groups}")
        if list(centroids) != sorted(centroids, reverse=True) or len(shares) != len(centroids) - 1:
            raise ValueError(
                f"centroids must fall from tier to tier, and shares must be given for all tiers but the last, "
                f"got {centroids=}, {shares=}"
            )
        self.dim, self.groups, self.centroids = dim, groups, list(centroids)
        if any(not 0 < share < 1 for share in shares) or sum(shares) >= 1:
            raise ValueError(f"shares of tiers must be above 0 and add up to less than 1, got {shares}")
        coded = [field.cardinality > max(centroids) for field in schema.fields]
        self.small = tuple(name for name, yes in zip(schema.names, coded, strict=True) if not yes)
        self.coded_rows = np.flatnonzero(np.repeat(coded, schema.cardinalities))
        ends, shifts, tiers, sizes = [], [], [], []  # of segments: a segment is a field, or a tier of a field
        taken = {True: 0, False: 0}  # rows so far of the table of queries, and of the plain table
        for first, number, yes in zip(schema.first_rows.tolist(), schema.cardinalities.tolist(), coded, strict=True):
            cuts = [math.ceil(number * share - 1e-9) for share in np.cumsum(shares).tolist()] if yes else []
            for tier, (start, stop) in enumerate(zip([0, *cuts], [*cuts, number], strict=True)):
                ends.append(first + stop)
                shifts.append(taken[yes] - first)
                tiers.append(tier if yes else -1)
                sizes.append(stop - start)
            taken[yes] += number
        self.table = Table(taken[False], dim) if taken[False] else None
        self.queries = Table(taken[True], dim) if taken[True] and not fixed else None
        places = [s for s, tier in enumerate(tiers) if tier >= 0]  # the coded segments
        self.tiers = [tiers[s] for s in places]
        self.codes = PackedCodes([sizes[s] for s in places], groups, [self.centroids[tier] for tier in self.tiers])
        coded_number = np.cumsum([tier >= 0 for tier in tiers]) - 1
        self.register_buffer("ends", torch.tensor(ends), persistent=False)
        self.register_buffer("about", torch.tensor([shifts, tiers, coded_number.tolist()]), persistent=False)
        self.register_buffer("settled", torch.tensor(False))

    ends: Tensor
    about: Tensor
    settled: Tensor

    # Defined by each method

    def books(self) -> Tensor:
        """(G, K, D / G): the served codebooks."""
        raise NotImplementedError(f"{type(self).__name__} must define books()")

    def quantised(self, queries: Tensor, tiers: Tensor) -> Tensor:
        """(u, D) vectors that replace queries (u, D) of distinct rows, of tiers (u,), before `finish`."""
        raise NotImplementedError(f"{type(self).__name__} must define quantised(queries, tiers)")

    def nearest(self, queries: Tensor, tier: int) -> Tensor:
        """Queries (u, D) of a tier -> (u, G) codes."""
        raise NotImplementedError(f"{type(self).__name__} must define nearest(queries, tier)")

    # Common to all methods

    def vectors(self, occ: Occurrences) -> Tensor:
        if self.settled:
            return self._decoded(self.table, self.codes.data, self.books(), occ)
        segments, rows = self._placed(occ)
        tiers = self.about[1][segments]
        values = rows.new_empty((len(rows), self.dim), dtype=torch.get_default_dtype())
        if self.table is not None:
            here = (tiers < 0).nonzero()[:, 0]
            values = values.index_copy(0, here, self.table(rows[here]))
        if self.queries is not None:
            here = (tiers >= 0).nonzero()[:, 0]
            values = values.index_copy(0, here, self.quantised(self.queries(rows[here]), tiers[here]))
        return values

    def _placed(self, occ: Occurrences) -> tuple[Tensor, Tensor]:
        """(U,) segment of each row of the batch, and (U,) its row number in the plain table or in the queries."""
        segments = torch.searchsorted(self.ends, occ.rows, right=True)
        return segments, occ.rows + self.about[0][segments]

    @torch.no_grad()
    def finish(self) -> None:
        if self.queries is None or bool(self.settled):
            return
        for segment, tier, start, queries in self._chunks():
            self.codes.write(segment, start, self.nearest(queries, tier))
        self.settled.fill_(True)

    def _chunks(self) -> Iterator[tuple[int, int, int, Tensor]]:
        """All queries in chunks: number of the coded segment, its tier, first row in the segment, queries (n, D)."""
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

        It is K if all centroids are used by equally many rows, and 1 if all rows use one centroid.

        Raises:
            ValueError: if no field is coded.
        """
        if self.queries is None:
            raise ValueError(
                f"perplexity needs a coded field, but no field has more than {max(self.centroids)} values; "
                "use fewer centroids"
            )
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
        kept: dict[str, Tensor] = {} if self.table is None else {"table": self.table.weight}
        kept |= {"code": self.codes.data, "codebook": self.books()} if self.tiers else {}
        return {name: tensor.detach() for name, tensor in kept.items()}

    def lookup(self, packed: Mapping[str, Tensor], occ: Occurrences) -> Tensor:
        """The vectors (U, D); only the codes of the batch's rows are read."""
        table = packed.get("table")
        take = None if table is None else lambda rows: table.index_select(0, rows)
        return self._decoded(take, packed.get("code"), packed.get("codebook"), occ)

    def _decoded(
        self, take: Callable[[Tensor], Tensor] | None, data: Tensor | None, books: Tensor | None, occ: Occurrences
    ) -> Tensor:
        """The vectors (U, D) of settled codes.

        Args:
            take: looks up rows of the plain table; None if there is none.
            data: the string of codes; None if no field is coded.
            books: of `books`; None if no field is coded.
            occ: the rows.
        """
        segments, rows = self._placed(occ)
        _, tiers, coded = self.about[:, segments]
        values = torch.empty(len(rows), self.dim, device=rows.device)
        if take is not None:
            here = (tiers < 0).nonzero()[:, 0]
            values = values.index_copy(0, here, take(rows[here]))
        if data is not None and books is not None:
            here = (tiers >= 0).nonzero()[:, 0]
            codes = self.codes.read(data, rows[here], coded[here])
            values = values.index_copy(0, here, self.decoded(codes, books, coded[here]))
        return values

    def decoded(self, codes: Tensor, books: Tensor, segments: Tensor) -> Tensor:
        """Settled codes (u, G), codebooks of `books`, coded segments (u,) -> (u, D)."""
        return decode(codes, books)


def decode(codes: Tensor, books: Tensor) -> Tensor:
    """Codes (u, G), codebooks (G, K, D / G) -> (u, D)."""
    groups, number, width = books.shape
    flat = codes + number * torch.arange(groups, device=codes.device)
    return books.reshape(groups * number, width).index_select(0, flat.flatten()).view(len(codes), groups * width)


@torch.no_grad()
def closest(vectors: Tensor, books: Tensor) -> Tensor:
    """(u, G) numbers of the nearest centroids, by Euclidean distance, for vectors (u, D), codebooks (G, K, D / G)."""
    groups, _, width = books.shape
    lengths = -0.5 * books.square().sum(2)[:, None]
    codes = []
    for chunk in vectors.view(len(vectors), groups, width).split(CACHED):
        scores = torch.baddbmm(lengths, chunk.transpose(0, 1), books.transpose(1, 2))  # (G, n, K)
        codes.append(scores.max(2).indices)  # twice as fast as argmax
    return torch.cat(codes, 1).T


class NearestCentroids(ProductQuantised):
    """DPQ-VX: each query is replaced by its nearest centroids, which are pulled towards it.

    Chen, Li & Sun 2020, "Differentiable Product Quantization for End-to-End Embedding Compression", ICML, section 3.2:

        c = argmin_k |q - K_k|^2,   out = q + sg(K_c - q),   loss + |sg(q) - K_c|^2 + commitment |q - sg(K_c)|^2

    for each group, where sg stops the gradient. The task's loss trains the queries, and the first added term trains the
    centroids.

    NOTE[DIFF]: the two added terms are means over the distinct rows of a batch, not over its tokens. So the cost of a
    step depends only on its distinct rows, and rare values pull a centroid as much as frequent values do.

    Args:
        schema, dim, groups, centroids, shares: of `ProductQuantised`.
        commitment: weight of the last term; 0 in the authors' code.
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
        self.pull: Tensor | None = None  # the added terms of the last batch

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
        decoded = decode(codes, self.book)
        if self.training:
            self.idle.add_(1).scatter_(1, codes.T, 0)
            self.pull = (decoded - queries.detach()).square().sum(1).mean()
            if self.commitment:
                self.pull = self.pull + self.commitment * (queries - decoded.detach()).square().sum(1).mean()
        return decoded.detach() + (queries - queries.detach())  # equal, bit for bit, to the served vectors

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


def finest(
    evidence: Evidence,
    build: Build,
    groups: Sequence[int],
    centroids: Sequence[Sequence[int]],
    settings: Mapping[str, Any] | None = None,
) -> Allocation:
    """The codes with the most bits per row within the limit; ties go to more centroids, then to fewer bytes.

    A row of G codes distinguishes 2 ** (G log2 K) vectors. With many bits, each further D bits divide the squared error
    by 4, for any G. For equal numbers of bits, fewer and wider groups have the smaller error, because they can use the
    dependence between their coordinates.

    Args:
        evidence: the limit, the schema and D.
        build: of the method.
        groups: numbers of groups to try.
        centroids: numbers of centroids to try, each with one number per tier.
        settings: other settings of the allocation.

    Raises:
        TooFewBytes: if none fits; the message says the fewest possible bytes.
    """
    offered = [
        evidence.allocation(evidence.dim, {"groups": g, "centroids": list(k), **(settings or {})})
        for g in groups
        for k in centroids
    ]
    sizes = [spent(build, evidence.schema, evidence.dim, allocation).bytes for allocation in offered]
    fitting = [i for i, size in enumerate(sizes) if size <= evidence.limit]
    if not fitting:
        raise TooFewBytes(
            f"{evidence.method}: no codes take {evidence.limit:,} bytes or less, the least is {min(sizes):,}; "
            "raise the budget, or do not set groups and centroids"
        )

    def fineness(i: int) -> tuple[int, ...]:
        groups, centroids = offered[i].settings["groups"], offered[i].settings["centroids"]
        return (*(groups * bits(k) for k in reversed(centroids)), *reversed(centroids), -sizes[i])

    return offered[max(fitting, key=fineness)]


def divisors(dim: int, most: int | None = None) -> list[int]:
    """The divisors of D, up to ``most``: the possible numbers of groups."""
    return [g for g in range(1, (most or dim) + 1) if dim % g == 0]


def check_groups(dim: int, options: Mapping[str, Any]) -> None:
    """Raise a ValueError unless the option ``groups`` divides D, or is not given; see `Method`."""
    groups = options.get("groups") or 1
    if dim % groups:
        raise ValueError(f"groups must divide {dim}, the dim of the tables, got {groups}")


def check_dims(allocation: Allocation, dim: int) -> None:
    """Raise a ValueError unless every dimension is D, because codes represent whole vectors."""
    wrong = {name: d for name, d in allocation.dims.items() if d != dim}
    if wrong:
        raise ValueError(f"{allocation.method}: every kept field must have the dimension {dim}, got {wrong}")
