"""Coarser choices of bits than `pipeline.coding.choice.choose`, to show what each refinement adds.

All code alike: the first d components have b bits, or all rows have b bits. The pair (d, b) is the same for all
fields, or one for each field, or one for each block. These are known methods with a better coding: one dimension for
all fields in a few bits; a dimension for each field, as AutoDim chooses it; one for each block of rows, as in NIS.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.allocation.budget import NO_CANDIDATE, TooFewBytes
from pipeline.allocation.knapsack import pareto, within_budget
from pipeline.coding.choice import PADDING, Plan, choose
from pipeline.coding.prediction import Prediction
from pipeline.coding.quantiser import BITS

Unit = Literal["component", "block", "field", "all", "random"]
FALL = 4.0  # an error is divided by it for every bit, if the importance is drawn


def choose_by(predictions: Sequence[Prediction], limit: int, unit: Unit, seed: int = 0) -> list[Plan]:
    """The plan of every field with the least sum of predicted losses within ``limit`` bytes, among coarser plans.

    Args:
        predictions: of the F fields.
        limit: bytes of all that is stored.
        unit: what has its own number of bits: "component": each component of each block, by
            `pipeline.coding.choice.choose`; "random": likewise, with an importance that is drawn. Or what has its own
            pair (d, b): "block", "field", or "all" fields together.
        seed: of the drawn importance.

    Raises:
        TooFewBytes: if no such plan fits.
    """
    if unit == "component":
        return choose(predictions, limit)
    if unit == "random":
        rng = np.random.default_rng(seed)
        return choose([_drawn(prediction, rng) for prediction in predictions], limit)
    bits = 8 * limit - PADDING
    if unit == "all":
        return _alike(predictions, bits)
    ways = [_reduced([*_of_field(one, unit == "block"), *_by_rows(one)]) for one in predictions]
    scores = np.full((len(ways), max(map(len, ways))), -np.inf)
    prices = np.full(scores.shape, NO_CANDIDATE)
    unit_loss = max(sum(of_field[0].loss for of_field in ways), 1e-300)
    for score, price, of_field in zip(scores, prices, ways, strict=True):
        score[: len(of_field)] = [-way.loss / unit_loss for way in of_field]
        price[: len(of_field)] = [way.size for way in of_field]
    try:
        chosen = within_budget(scores, prices, bits)
    except TooFewBytes:
        raise _too_few(limit, sum(of_field[0].size for of_field in ways)) from None
    return [of_field[n].plan for of_field, n in zip(ways, chosen, strict=True)]


def _too_few(limit: int, bits: int) -> TooFewBytes:
    least = -(-(bits + PADDING) // 8)
    return TooFewBytes(f"coded: {limit:,} bytes are too few, the least is {least:,}; raise the budget")


@dataclass(frozen=True)
class _Way:
    """One way to code a field, with its size in bits and its predicted loss."""

    plan: Plan
    size: int
    loss: float

    @classmethod
    def of(cls, prediction: Prediction, plan: Plan) -> _Way:
        size = plan.size(prediction.dim) + prediction.extra[int(plan.by_rows)]
        return cls(plan, size, prediction.loss(plan.bits, plan.by_rows))


def _reduced(ways: Sequence[_Way]) -> list[_Way]:
    """The ways that no other beats in both size and loss, by rising size."""
    keep = pareto(np.array([way.size for way in ways]), np.array([way.loss for way in ways]))
    return [ways[n] for n in keep]


def _by_rows(prediction: Prediction) -> Iterator[_Way]:
    for n, bits in enumerate(BITS):
        if np.isfinite(prediction.rows[n]):
            plan = Plan(prediction.cuts[[0, -1]], np.full((1, prediction.dim), bits, np.uint8), True)
            yield _Way.of(prediction, plan)


def _pairs(components: int) -> Iterator[tuple[int, int]]:
    """All (d, b), and no bits at all."""
    yield 0, 0
    yield from itertools.product(range(1, components + 1), BITS[1:])


def _of_field(prediction: Prediction, of_blocks: bool) -> Iterator[_Way]:
    """The ways to code a field by components: with one (d, b), or with one for each block."""
    blocks, components, _ = prediction.components.shape
    if not of_blocks:
        for d, b in _pairs(components):
            yield _Way.of(prediction, Plan(prediction.cuts, _bits(components, [(d, b)] * blocks), False))
        return
    rows = np.diff(prediction.cuts)
    pairs = list(_pairs(components))
    dims, of_pairs = np.array([d for d, _ in pairs]), np.array([b for _, b in pairs])
    sums = np.pad(prediction.components.cumsum(1), ((0, 0), (1, 0), (0, 0)))  # (J, K + 1, N) of the first d
    places = np.searchsorted(BITS, of_pairs)
    losses = sums[:, dims, places] + (sums[:, -1, :1] - sums[:, dims, 0])  # (J, pairs)
    sizes = rows[:, None] * (dims * of_pairs) + 32 * dims
    for most in range(components + 1):  # decoder rows are paid for by the largest d
        size, loss, chosen = np.zeros(1), np.zeros(1), np.zeros((1, 0), np.int64)
        able = np.flatnonzero(dims <= most)
        for of_size, of_loss in zip(sizes[:, able], losses[:, able], strict=True):
            keep = pareto(of_size, of_loss)
            all_sizes, all_losses = ((a[:, None] + b[keep]).ravel() for a, b in ((size, of_size), (loss, of_loss)))
            best = pareto(all_sizes, all_losses)
            parent, picked = np.divmod(best, len(keep))
            size, loss = all_sizes[best], all_losses[best]
            chosen = np.concatenate([chosen[parent], able[keep[picked]][:, None]], 1)
        for numbers in chosen:
            if max(dims[numbers]) == most:
                plan = Plan(prediction.cuts, _bits(components, [pairs[n] for n in numbers]), False)
                yield _Way.of(prediction, plan)


def _bits(components: int, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """(J, K) uint8 bits of blocks with these (d, b)."""
    return np.array([[b] * d + [0] * (components - d) for d, b in pairs], np.uint8)


def _alike(predictions: Sequence[Prediction], limit: int) -> list[Plan]:
    """The best plan with one (d, b) for all fields; a field whose rows are cheaper in b bits is coded by rows."""
    best: tuple[float, list[Plan]] | None = None
    least = None
    for d, b in _pairs(max(one.components.shape[1] for one in predictions)):
        ways = []
        for one in predictions:
            blocks, components, _ = one.components.shape
            of_field = [_Way.of(one, Plan(one.cuts, _bits(components, [(min(d, components), b)] * blocks), False))]
            of_field += [way for way in _by_rows(one) if way.plan.bits[0, 0] == b]
            ways.append(min(of_field, key=lambda way: way.size))
        size, loss = sum(way.size for way in ways), sum(way.loss for way in ways)
        least = size if least is None else min(least, size)
        if size <= limit and (best is None or loss < best[0]):
            best = loss, [way.plan for way in ways]
    if best is None:
        assert least is not None
        raise _too_few((limit + PADDING) // 8, least)
    return best[1]


def _drawn(prediction: Prediction, rng: np.random.Generator) -> Prediction:
    """A prediction in which the importance of each component of each block is drawn, and not that of the data."""
    blocks, components, _ = prediction.components.shape
    drawn = rng.exponential(size=(blocks, components)) * np.diff(prediction.cuts)[:, None]
    falls = FALL ** -np.array(BITS, np.float64)
    rows = np.where(np.isfinite(prediction.rows), drawn.sum() * falls, np.inf)
    return Prediction(prediction.cuts, drawn[..., None] * falls, rows, prediction.dim, prediction.extra)
