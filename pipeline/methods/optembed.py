"""OptEmbed. Lyu et al. 2022, "OptEmbed: Learning Optimal Embedding Table for Click-through Rate Prediction", CIKM."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.budget import in_bytes
from pipeline.allocation.draw import sample
from pipeline.allocation.evidence import DEFAULT_SHARE, Evidence
from pipeline.allocation.knapsack import within_budget
from pipeline.data.schema import Field, Schema
from pipeline.embeddings.batch import Occurrences, spread
from pipeline.embeddings.bitmap import Bitmap
from pipeline.embeddings.contract import FieldEmbedding, Passes
from pipeline.embeddings.cost import cost, full_tables, prices
from pipeline.embeddings.mixed import MixedTables
from pipeline.embeddings.table import Table
from pipeline.metrics.auc import auc
from pipeline.workflow.plug import Least

FILLED = 0.9  # of the budget that the first candidates take at least


class _Step(torch.autograd.Function):
    """1 where x > 0, else 0; its gradient is 2 - 4 |x| up to 0.4, 0.4 up to 1, and 0 beyond (Xu & Cheung 2019)."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)  # type: ignore[attr-defined]
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        far = x.abs()
        return grad * torch.where(far <= 0.4, 2 - 4 * far, torch.where(far <= 1, 0.4, 0.0))


@dataclass(frozen=True)
class Evolution:
    """Dims that bring forth better ones. The third step of Lyu et al. 2022.

    Args:
        generations: after the first one, which is drawn at random.
        parents: the best of all so far, from which a generation is made by
        mutations: of one parent, each field's dim being drawn anew with the probability ``rate``, and
        crossovers: of two parents, at a point between two fields.
    """

    generations: int
    parents: int
    mutations: int
    crossovers: int
    rate: float

    def run(
        self,
        price: np.ndarray,
        budget: int,
        judge: Callable[[np.ndarray], float],
        rng: np.random.Generator,
    ) -> tuple[np.ndarray, np.ndarray]:
        """All candidates within the budget that came up, each judged once.

        Args:
            price: (F, D) bytes of dims 1 to D.
            judge: dims (F,) -> how good they are.

        Returns:
            dims (n, F) and what the judge said (n,), the best first.
        """
        judged: dict[tuple[int, ...], float] = {}
        cheapest, dearest = int(price.min(1).sum()), int(price.max(1).sum())
        high = max(min(budget, dearest), cheapest)
        low = max(int(FILLED * high), cheapest)
        number = self.parents + self.mutations + self.crossovers
        made = [sample(price, low, high, rng) + 1 for _ in range(number)]
        for generation in itertools.count():
            for dims in made:
                fitting = nearest(dims, price, high)
                key = tuple(fitting.tolist())
                if key not in judged:
                    judged[key] = judge(fitting)
            ranked = sorted(judged, key=lambda key: (-judged[key], key))
            if generation == self.generations:
                return np.array(ranked), np.array([judged[key] for key in ranked])
            parents = np.array(ranked[: self.parents])
            single = parents[rng.integers(len(parents), size=self.mutations)]
            pairs = parents[rng.integers(len(parents), size=(self.crossovers, 2))]
            made = [mutated(dims, price.shape[1], self.rate, rng) for dims in single]
            made += [crossed(one, other, rng) for one, other in pairs]
        raise AssertionError("the generations are counted")


def mutated(dims: np.ndarray, dim: int, rate: float, rng: np.random.Generator) -> np.ndarray:
    """Dims (F,) of which each is drawn anew, from 1 to ``dim``, with the probability ``rate``; ``dims`` stay."""
    return np.where(rng.random(len(dims)) < rate, rng.integers(1, dim + 1, len(dims)), dims)


def crossed(one: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The dims (F,) of one before a field that is drawn, those of the other from there."""
    point = rng.integers(1, max(2, len(one)))
    return np.concatenate([one[:point], other[point:]])


def nearest(dims: np.ndarray, price: np.ndarray, budget: int) -> np.ndarray:
    """Of the dims within the budget those that differ least, by the sum of their ratios' logarithms: (F,) -> (F,)."""
    if price[np.arange(len(dims)), dims - 1].sum() <= budget:
        return dims
    steps = np.abs(np.log(np.arange(1, price.shape[1] + 1)) - np.log(dims)[:, None])
    return within_budget(-steps, price, budget) + 1


class Supernet(FieldEmbedding):
    """A full table of which a batch sees the rows that are larger than their field's threshold, cut to random dims.

    A row's size is the sum of its absolute numbers. Thresholds t are trained with the weights; exp(-t) in the loss
    makes them grow. When all is trained, dims are evolved on ``arch``.

    Args:
        target: bytes that the evolution is for.
        row_weight: of the sum of exp(-t).
        batches: of ``arch`` that judge a candidate; None for all.

    NOTE[DIFF]: a batch has one random dim for each field, where the official code draws one for each of its rows. Rows
    that a batch touches are masked once, before they are spread over it.
    NOTE[DIFF]: the paper knows no budget. Its best candidate is then the one with the most parameters, or nearly.
    """

    def __init__(
        self, schema: Schema, dim: int, target: int, row_weight: float, evolution: Evolution, batches: int | None
    ) -> None:
        super().__init__()
        self.schema, self.dim, self.target = schema, dim, target
        self.row_weight, self.evolution, self.batches = row_weight, evolution, batches
        self.table = Table(schema.num_rows, dim)
        self.thresholds = nn.Parameter(torch.zeros(len(schema)))
        fields = np.repeat(np.arange(len(schema)), schema.cardinalities)
        self.register_buffer("fields", torch.from_numpy(fields), persistent=False)  # (V,)
        self.register_buffer("columns", torch.arange(dim), persistent=False)
        self.register_buffer("dims", torch.full((len(schema),), dim), persistent=False)  # outside of training
        self.candidates, self.quality = np.empty((0, len(schema)), np.int64), np.empty(0)

    fields: Tensor
    columns: Tensor
    dims: Tensor

    def forward(self, occ: Occurrences) -> Tensor:
        """Occurrences -> (B, F, D)."""
        rows, fields = self.table(occ.rows), self.fields.index_select(0, occ.rows)
        dims = torch.randint_like(self.dims, 1, self.dim + 1) if self.training else self.dims
        read = self.columns < dims[:, None]  # (F, D)
        kept = _Step.apply(rows.abs().sum(1) - self.thresholds.index_select(0, fields))
        return spread(rows * kept[:, None] * read.index_select(0, fields), occ)

    def objective(self, loss: Tensor, part: str) -> Tensor:
        return loss + self.row_weight * torch.exp(-self.thresholds).sum()

    @torch.no_grad()
    def kept(self) -> np.ndarray:
        """(V,) bool: rows above their field's threshold, and of a field that has none the largest one."""
        margin = self.table.weight.abs().sum(1) - self.thresholds.index_select(0, self.fields)
        kept = (margin > 0).cpu().numpy()
        for first, rows in zip(self.schema.first_rows.tolist(), self.schema.cardinalities.tolist(), strict=True):
            if not kept[first : first + rows].any():
                kept[first + int(margin[first : first + rows].argmax())] = True
        return kept

    @torch.no_grad()
    def conclude(self, passes: Passes) -> None:
        """Evolve dims; their AUC on ``arch`` is that of the supernet cut to them."""

        def judge(dims: np.ndarray) -> float:
            self.dims.copy_(torch.from_numpy(dims))
            pairs = [(logits.cpu(), labels.cpu()) for logits, labels in itertools.islice(passes(), self.batches)]
            logits, labels = (torch.cat(parts).numpy() for parts in zip(*pairs, strict=True))
            return auc(labels, logits)

        price = price_of_dims(self.schema, self.dim, self.kept())
        rng = np.random.default_rng(int(torch.randint(2**31, ())))
        self.candidates, self.quality = self.evolution.run(price, self.target, judge, rng)
        self.dims.fill_(self.dim)

    def watched(self) -> dict[str, float]:
        return {"threshold/mean": float(self.thresholds.detach().mean())}

    def packed(self) -> dict[str, Tensor]:
        return {"table": self.table.weight.detach(), "threshold": self.thresholds.detach()}

    def found(self) -> dict[str, np.ndarray]:
        """Bits of the rows that are kept, dims (n, F) and their AUC (n,)."""
        return {"rows": np.packbits(self.kept()), "dims": self.candidates.astype(np.int32), "auc": self.quality}


class KeptRows(FieldEmbedding):
    """`MixedTables` of the rows that are kept; all others are one row of zeros. A bitmap finds a row's place.

    Args:
        schema: F fields.
        dims: of each field.
        dim: D.
        kept: (V,) bool, at least one row of each field.
    """

    def __init__(self, schema: Schema, dims: Mapping[str, int], dim: int, kept: np.ndarray) -> None:
        super().__init__()
        self.dim = dim
        self.tables = MixedTables(with_rows(schema, kept), dims, dim)
        bitmap = Bitmap.of(kept)
        self.register_buffer("bits", bitmap.words, persistent=False)
        self.register_buffer("before", bitmap.before, persistent=False)

    bits: Tensor
    before: Tensor

    def forward(self, occ: Occurrences) -> Tensor:
        """Occurrences -> (B, F, D)."""
        bitmap = Bitmap(self.bits, self.before)
        there = bitmap.at(occ.rows)
        upto = nn.functional.pad(there.cumsum(0), (1, 0))
        source = there.nonzero()[:, 0]
        rows = bitmap.rank(occ.rows.index_select(0, source))
        vectors = self.tables.of_rows(rows, upto[occ.ends.long()].int())
        return spread(vectors.new_zeros(len(occ.rows), self.dim).index_copy(0, source, vectors), occ)

    def packed(self) -> dict[str, Tensor]:
        return self.tables.packed() | {"index.bits": self.bits, "index.before": self.before}


def with_rows(schema: Schema, kept: np.ndarray) -> Schema:
    """The schema of the rows that are kept."""
    counts = np.add.reduceat(kept, schema.first_rows, dtype=np.int64).tolist()
    if min(counts) == 0:
        raise ValueError(f"field {schema.names[counts.index(0)]!r} keeps none of its rows; drop it, or keep one")
    return Schema(tuple(Field(f.name, n, f.width) for f, n in zip(schema.fields, counts, strict=True)))


def price_of_dims(schema: Schema, dim: int, kept: np.ndarray) -> np.ndarray:
    """(F, D) bytes of dims 1 to D of each field's kept rows; those of the bitmap are in the first field's."""
    every = [list(range(1, dim + 1))] * len(schema)
    price = prices(lambda *given: MixedTables(given[0], given[2].dims, given[1]), with_rows(schema, kept), every, dim)
    if not kept.all():
        with torch.device("meta"):
            form = Bitmap.form(len(kept))
            price[0] += cost({name: torch.empty(size, dtype=dtype) for name, (size, dtype) in form.items()}).bytes
    return price


def candidates(schema: Schema, dim: int) -> list[list[int]]:
    """Every dimension from 1 to D."""
    return [list(range(1, dim + 1)) for _ in schema.fields]


def search(
    schema: Schema,
    dim: int,
    candidates: Sequence[Sequence[int]],
    prices: np.ndarray,
    *,
    target: int | float | None = None,
    row_weight: Annotated[float, Least(0)] = 0.0001,
    generations: Annotated[int, Least(0)] = 10,
    parents: Annotated[int, Least(1)] = 15,
    mutations: Annotated[int, Least(0)] = 10,
    crossovers: Annotated[int, Least(0)] = 10,
    mutation: Annotated[float, Least(0)] = 0.1,
    batches: Annotated[int, Least(1)] | None = None,
) -> Supernet:
    """The supernet; its defaults are the paper's, but for 10 generations instead of 30.

    Args:
        target: bytes, or share of the full tables', that dims are evolved for; null: a quarter.
        row_weight, batches: see `Supernet`.
        generations, parents, mutations, crossovers: see `Evolution`.
        mutation: probability that a mutation draws a field's dim anew.
    """
    wanted = in_bytes(DEFAULT_SHARE if target is None else target, full_tables(schema, dim).bytes)
    evolution = Evolution(generations, parents, mutations, crossovers, mutation)
    return Supernet(schema, dim, wanted, row_weight, evolution, batches)


def derive(given: Evidence) -> Allocation:
    """The kept rows, with the best dims within the limit that the evolution came upon.

    Where all that it came upon are too large, those nearest to the best one that fit.

    NOTE[DIFF]: official training goes on from the supernet's initial numbers. Tables without the dropped rows, of
    narrower dims and with projections have numbers of their own.
    """
    kept = np.unpackbits(given.found["rows"], count=given.schema.num_rows).astype(bool)
    price = price_of_dims(given.schema, given.dim, kept)
    evolved = given.found["dims"]
    bytes_of = price[np.arange(evolved.shape[1]), evolved - 1].sum(1)
    fitting = np.flatnonzero(bytes_of <= given.limit)
    dims = evolved[fitting[0]] if len(fitting) else nearest(evolved[0], price, given.limit)
    named = {name: int(d) for name, d in zip(given.schema.names, dims, strict=True)}
    if kept.all():
        return Allocation("optembed", named)
    return Allocation("optembed", named, {"rows": int(kept.sum())}, {"rows": np.packbits(kept)})


def build(schema: Schema, dim: int, allocation: Allocation) -> FieldEmbedding:
    if not allocation.settings:
        return MixedTables(schema, allocation.dims, dim)
    octets, rows = allocation.arrays.get("rows"), allocation.settings["rows"]
    if octets is None or len(octets) != -(-schema.num_rows // 8):
        raise ValueError(f"array 'rows' must hold {schema.num_rows:,} bits; derive the allocation again")
    kept = np.unpackbits(octets, count=schema.num_rows).astype(bool)
    if int(kept.sum()) != rows:
        raise ValueError(f"array 'rows' keeps {int(kept.sum()):,} rows, however {rows=}; derive the allocation again")
    return KeptRows(schema, allocation.dims, dim, kept)
