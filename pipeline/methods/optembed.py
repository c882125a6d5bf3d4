"""OptEmbed. Lyu et al. 2022, "OptEmbed: Learning Optimal Embedding Table for Click-through Rate Prediction", CIKM."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pydantic
import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.draw import sample
from pipeline.allocation.evidence import Evidence, Problem
from pipeline.allocation.knapsack import within_budget
from pipeline.data.schema import Field, Schema
from pipeline.embeddings.batch import Occurrences
from pipeline.embeddings.bitmap import Bitmap
from pipeline.embeddings.contract import FieldEmbedding, Findings, Judge
from pipeline.embeddings.cost import cost, prices
from pipeline.embeddings.mixed import MixedTables
from pipeline.embeddings.table import Table
from pipeline.workflow.validation import Budget, Count, Rate, Whole

FILLED = 0.9  # the least share of the budget that the first candidates take
Probability = Annotated[float, pydantic.Field(ge=0, le=1)]


class _Step(torch.autograd.Function):
    """1 where x > 0, else 0. Gradient: 2 - 4 |x| for |x| up to 0.4, 0.4 up to 1, 0 beyond (Xu & Cheung 2019)."""

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
    """An evolutionary search for dims: the third step of Lyu et al. 2022.

    Args:
        generations: number of generations after the first, which is drawn at random.
        parents: number of the best candidates so far that produce the next generation.
        mutations: number of candidates from one parent: each field's dim is drawn anew with the probability ``rate``.
        crossovers: number of candidates from two parents, joined at a point between two fields.
        rate: see ``mutations``.
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
        """Run the search; every candidate is cut to the budget and judged once.

        Args:
            price: (F, D) bytes of dims 1 to D.
            budget: bytes.
            judge: dims (F,) -> their quality.
            rng: source of the random draws.

        Returns:
            dims (n, F) and quality (n,) of all candidates, the best first.
        """
        judged: dict[tuple[int, ...], float] = {}
        cheapest, dearest = int(price.min(1).sum()), int(price.max(1).sum())
        high = max(min(budget, dearest), cheapest)
        low = max(int(FILLED * high), cheapest)
        number = self.parents + self.mutations + self.crossovers
        candidates = [sample(price, low, high, rng) + 1 for _ in range(number)]
        for generation in itertools.count():
            for dims in candidates:
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
            candidates = [mutated(dims, price.shape[1], self.rate, rng) for dims in single]
            candidates += [crossed(one, other, rng) for one, other in pairs]
        raise AssertionError("the loop returns at its last generation")


def mutated(dims: np.ndarray, dim: int, rate: float, rng: np.random.Generator) -> np.ndarray:
    """Dims (F,), each drawn anew from 1 to ``dim`` with the probability ``rate``."""
    return np.where(rng.random(len(dims)) < rate, rng.integers(1, dim + 1, len(dims)), dims)


def crossed(one: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The dims (F,) of ``one`` before a random field, and the dims of ``other`` from that field on."""
    point = rng.integers(1, max(2, len(one)))
    return np.concatenate([one[:point], other[point:]])


def nearest(dims: np.ndarray, price: np.ndarray, budget: int) -> np.ndarray:
    """The dims (F,) within the budget nearest to ``dims``, by the sum of the absolute logarithms of their ratios."""
    if price[np.arange(len(dims)), dims - 1].sum() <= budget:
        return dims
    steps = np.abs(np.log(np.arange(1, price.shape[1] + 1)) - np.log(dims)[:, None])
    return within_budget(-steps, price, budget) + 1


class ThresholdedRows(FieldEmbedding):
    """A full table; rows below their field's threshold are masked, and in training all rows are cut to random dims.

    The size of a row is the sum of its absolute numbers. Thresholds t are trained with the weights, and exp(-t) in the
    loss makes them grow. After training, dims are evolved on ``arch``.

    Args:
        schema: F fields.
        dim: D.
        target: bytes that the evolved dims may cost.
        row_weight: weight of the sum of exp(-t) in the loss.
        evolution: of the dims.
        batches: number of batches of ``arch`` on which a candidate is judged; None for all.

    NOTE[DIFF]: a batch has one random dim per field; the official code draws one for each row of the batch. So the
    distinct rows of a batch are masked once, before they are spread over it.
    NOTE[DIFF]: the paper has no budget, so its best candidate has the most parameters, or nearly.
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
        self.register_buffer("dims", torch.full((len(schema),), dim), persistent=False)  # used outside training
        self.candidates, self.quality = np.empty((0, len(schema)), np.int64), np.empty(0)

    fields: Tensor
    columns: Tensor
    dims: Tensor

    def vectors(self, occ: Occurrences) -> Tensor:
        rows, fields = self.table(occ.rows), self.fields.index_select(0, occ.rows)
        dims = torch.randint_like(self.dims, 1, self.dim + 1) if self.training else self.dims
        read = self.columns < dims[:, None]  # (F, D)
        kept = _Step.apply(rows.abs().sum(1) - self.thresholds.index_select(0, fields))
        return rows * kept[:, None] * read.index_select(0, fields)

    def objective(self, loss: Tensor, part: str) -> Tensor:
        return loss + self.row_weight * torch.exp(-self.thresholds).sum()

    @torch.no_grad()
    def kept(self) -> np.ndarray:
        """(V,) bool: rows above their field's threshold; in a field without any, the row with the largest margin."""
        margin = self.table.weight.abs().sum(1) - self.thresholds.index_select(0, self.fields)
        kept = (margin > 0).cpu().numpy()
        for first, rows in zip(self.schema.first_rows.tolist(), self.schema.cardinalities.tolist(), strict=True):
            if not kept[first : first + rows].any():
                kept[first + int(margin[first : first + rows].argmax())] = True
        return kept

    @torch.no_grad()
    def conclude(self, judge: Judge) -> None:
        """Evolve dims; their quality is the objective on ``arch`` of the supernet cut to them."""

        def quality(dims: np.ndarray) -> float:
            self.dims.copy_(torch.from_numpy(dims))
            return judge.objective(self.batches)

        price = price_of_dims(self.schema, self.dim, self.kept())
        rng = np.random.default_rng(int(torch.randint(2**31, ())))
        self.candidates, self.quality = self.evolution.run(price, self.target, quality, rng)
        self.dims.fill_(self.dim)

    def findings(self) -> Findings:
        return Findings(watched={"threshold/mean": float(self.thresholds.detach().mean())}, arrays=self._evolved)

    def _evolved(self) -> dict[str, np.ndarray]:
        """``rows``: bits of the kept rows; ``dims``: (n, F), the best first; ``quality``: (n,)."""
        dims = self.candidates.astype(np.int32)
        return {"rows": np.packbits(self.kept()), "dims": dims, "quality": self.quality}

    def packed(self) -> dict[str, Tensor]:
        return {"table": self.table.weight.detach(), "threshold": self.thresholds.detach()}


class KeptRows(FieldEmbedding):
    """`MixedTables` of the kept rows; the vectors of all other rows are zero. A bitmap finds the position of a row.

    Args:
        schema: F fields.
        dims: dimension of each field, by name.
        dim: D.
        kept: (V,) bool, at least one row of each field.

    Raises:
        ValueError: if a field keeps no row.
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

    def vectors(self, occ: Occurrences) -> Tensor:
        bitmap = Bitmap(self.bits, self.before)
        there = bitmap.at(occ.rows)
        upto = nn.functional.pad(there.cumsum(0), (1, 0))
        source = there.nonzero()[:, 0]
        rows = bitmap.rank(occ.rows.index_select(0, source))
        vectors = self.tables.of_rows(rows, upto[occ.ends.long()].int())
        return vectors.new_zeros(len(occ.rows), self.dim).index_copy(0, source, vectors)

    def packed(self) -> dict[str, Tensor]:
        return self.tables.packed() | {"index.bits": self.bits, "index.before": self.before}


def with_rows(schema: Schema, kept: np.ndarray) -> Schema:
    """The schema of the kept rows (V,) bool."""
    counts = np.add.reduceat(kept, schema.first_rows, dtype=np.int64).tolist()
    if min(counts) == 0:
        raise ValueError(
            f"field {schema.names[counts.index(0)]!r} must keep at least one row, got none; drop the field"
        )
    return Schema(tuple(Field(f.name, n, f.width) for f, n in zip(schema.fields, counts, strict=True)))


def price_of_dims(schema: Schema, dim: int, kept: np.ndarray) -> np.ndarray:
    """(F, D) bytes of each field's kept rows at dims 1 to D; the bitmap counts with the first field."""
    price = prices(MixedTables, with_rows(schema, kept), candidates(schema, dim), dim)
    if not kept.all():
        with torch.device("meta"):
            form = Bitmap.form(len(kept))
            price[0] += cost({name: torch.empty(size, dtype=dtype) for name, (size, dtype) in form.items()}).bytes
    return price


def candidates(schema: Schema, dim: int) -> list[list[int]]:
    """Every dimension from 1 to D."""
    return [list(range(1, dim + 1)) for _ in schema.fields]


def find(
    problem: Problem,
    *,
    target: Budget | None = None,
    row_weight: Rate = 0.0001,
    generations: Whole = 10,
    parents: Count = 15,
    mutations: Whole = 10,
    crossovers: Whole = 10,
    mutation: Probability = 0.1,
    batches: Count | None = None,
) -> ThresholdedRows:
    """The supernet; its defaults are the paper's, except for 10 generations instead of 30.

    Args:
        target: bytes, or a share of the full tables' bytes, that the evolved dims may cost; a quarter of these if None.
        row_weight, batches: of `ThresholdedRows`.
        generations, parents, mutations, crossovers: of `Evolution`.
        mutation: probability that a mutation draws a field's dim anew.
    """
    evolution = Evolution(generations, parents, mutations, crossovers, mutation)
    return ThresholdedRows(problem.schema, problem.dim, problem.target(target), row_weight, evolution, batches)


def derive(evidence: Evidence) -> Allocation:
    """The kept rows, with the best evolved dims within the limit; if none fits, the fitting dims nearest to the best.

    NOTE[DIFF]: in the official code, the final training starts from the supernet's initial numbers. Here the final
    tables have other shapes, with fewer rows, narrower dims and projections, and start from numbers of their own.
    """
    kept = np.unpackbits(evidence.arrays["rows"], count=evidence.schema.num_rows).astype(bool)
    price = price_of_dims(evidence.schema, evidence.dim, kept)
    evolved = evidence.arrays["dims"]
    bytes_of = price[np.arange(evolved.shape[1]), evolved - 1].sum(1)
    fitting = np.flatnonzero(bytes_of <= evidence.limit)
    dims = evolved[fitting[0]] if len(fitting) else nearest(evolved[0], price, evidence.limit)
    named = dict(zip(evidence.schema.names, dims, strict=True))
    if kept.all():
        return evidence.allocation(named)
    return evidence.allocation(named, {"rows": int(kept.sum())}, {"rows": np.packbits(kept)})


def build(schema: Schema, dim: int, allocation: Allocation) -> FieldEmbedding:
    """Tables of the kept rows; without a bitmap if all rows are kept.

    Raises:
        ValueError: if the array of kept rows does not fit the schema and the settings.
    """
    if "rows" not in allocation.settings:
        return MixedTables(schema, allocation.dims, dim)
    octets, rows = allocation.arrays.get("rows"), allocation.settings["rows"]
    if octets is None or len(octets) != -(-schema.num_rows // 8):
        raise ValueError(f"array 'rows' must hold {schema.num_rows:,} bits; derive the allocation again")
    kept = np.unpackbits(octets, count=schema.num_rows).astype(bool)
    if int(kept.sum()) != rows:
        raise ValueError(
            f"array 'rows' must keep {rows:,} rows, as the settings say, got {int(kept.sum()):,}; "
            "derive the allocation again"
        )
    return KeptRows(schema, allocation.dims, dim, kept)
