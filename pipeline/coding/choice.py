"""The number of bits of every coefficient, so that the tables cost the least predicted loss within a size.

A field is coded in one of two ways. *By components*: a mean, a decoder with a row for each component in use, and a
quantiser for each block and component. *By rows*: every row has a scale, and all its numbers have the same number of
bits; this is cheaper for fields with few values. A row of the decoder is paid for once, whichever blocks use it. So all
blocks of a component together are one item of a multiple-choice knapsack.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.allocation.budget import NO_CANDIDATE, TooFewBytes
from pipeline.allocation.knapsack import pareto, within_budget
from pipeline.coding.prediction import Prediction
from pipeline.coding.quantiser import BITS, LEVEL

CODE = 3  # bits that say which of `BITS` a component of a block has
PADDING = 8 * 8  # bits that the packed tensors may lose by being whole bytes
TRIES = 8  # other ways of fields that are tried
HALVINGS = 60  # of the price of a bit, when the way of each field is chosen


@dataclass(frozen=True, eq=False)
class Plan:
    """How the table of a field is coded.

    Args:
        cuts: (J + 1,) int64 rows at which the blocks begin, and V.
        bits: (J, K) uint8 bits of each component in each block. By rows: (1, D), all alike.
        by_rows: whether the field is coded by rows.
    """

    cuts: np.ndarray
    bits: np.ndarray
    by_rows: bool

    @property
    def rows(self) -> np.ndarray:
        """(J,) rows of each block."""
        return np.diff(self.cuts)

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """First row of each block, and the row after its last."""
        return list(itertools.pairwise(self.cuts.tolist()))

    @property
    def used(self) -> np.ndarray:
        """(K,) whether a component has bits in any block."""
        used: np.ndarray = np.any(self.bits > 0, axis=0)
        return used

    def size(self, dim: int) -> int:
        """Bits that the field takes, its plan included; D is ``dim``."""
        codes = int((self.rows @ self.bits.astype(np.int64)).sum())
        if self.by_rows:
            return codes + int(self.cuts[-1]) * LEVEL + _described(1, 1)
        numbers = dim * (1 + int(self.used.sum())) + 2 * int((self.bits > 0).sum())
        return codes + LEVEL * numbers + _described(*self.bits.shape)


def _described(blocks: int, components: int) -> int:
    """Bits of a plan: a byte for the number of blocks, the inner cuts in int32, and the numbers of bits."""
    return 8 + 32 * (blocks - 1) + CODE * blocks * components


def choose(predictions: Sequence[Prediction], limit: int) -> list[Plan]:
    """The plan of every field with the least sum of predicted losses within ``limit`` bytes; see `Choices.within`."""
    return Choices(predictions).within(limit)[0]


class Choices:
    """All ways to code F fields, from which the best ones within any size are chosen.

    Args:
        predictions: of the fields.
    """

    def __init__(self, predictions: Sequence[Prediction]) -> None:
        self._fields = [_Field(prediction) for prediction in predictions]
        self._aligned = tuple(_Aligned([field.items(by_rows) for field in self._fields]) for by_rows in (False, True))
        self._fixed = np.array([field.fixed for field in self._fields])

    def within(self, limit: int) -> tuple[list[Plan], float]:
        """The plan of every field with the least sum of predicted losses within ``limit`` bytes.

        Given the way of each field, the numbers of bits are the exact optimum. The ways are first the cheaper ones at
        the price of a bit that meets the limit (a Lagrange multiplier). At this price, no plan with another way of some
        fields costs less than the bound plus what their other ways cost more. So other ways are tried only where this
        sum is below the loss of the best plan so far, the most promising first, and at most `TRIES` of them. If there
        are no more, the plan is the exact optimum.

        Args:
            limit: bytes of all that is stored.

        Returns:
            The plans, and the share of their loss by which other plans may at most lose less; 0 if they are the
            optimum.

        Raises:
            TooFewBytes: naming the least that is possible.
        """
        bits = 8 * limit - PADDING
        least = sum(field.least for field in self._fields)
        if least > bits:
            raise TooFewBytes(
                f"coded: {limit:,} bytes are too few, the least is {-(-(least + PADDING) // 8):,}; raise the budget"
            )
        priced = self._priced(bits)
        best = _solved(self._fields, priced.by_rows, bits)
        for tries, (possible, other) in enumerate(priced.others()):
            if possible >= best.loss or best.loss == 0:  # a bound may be below 0 by rounding, but no loss is
                break
            if tries == TRIES:
                return best.plans, 1 - possible / best.loss
            tried = _solved(self._fields, other, bits)
            if tried.loss < best.loss:
                best = tried
        return best.plans, 0.0

    def _at(self, price: float, bits: int) -> tuple[int, _Priced]:
        """The bits of the cheaper ways of all fields, if a bit has this price."""
        sizes, losses = np.stack([aligned.cheapest(price) for aligned in self._aligned], 1)  # (2, F) each
        sizes[0] += self._fixed
        costs = losses + price * sizes
        by_rows = costs[1] < costs[0]
        bound = float(costs.min(0).sum() - price * bits)
        return int(np.where(by_rows, sizes[1], sizes[0]).sum()), _Priced(
            by_rows.tolist(), bound, np.abs(costs[1] - costs[0])
        )

    def _priced(self, bits: int) -> _Priced:
        """The cheaper way of each field at the lowest price of a bit at which all fields fit."""
        low, high = 1e-30, 1e6  # prices of a bit: too cheap, and too dear for anything but the least
        size, found = self._at(low, bits)
        if size <= bits:
            return found
        for _ in range(HALVINGS):
            middle = (low * high) ** 0.5
            size, tried = self._at(middle, bits)
            low, high = (middle, high) if size > bits else (low, middle)
            if size <= bits:
                found = tried
        if self._at(high, bits)[0] > bits:  # even the least of these ways is too much
            by_rows = [int(field.rows[0].prices[0]) < field.fixed for field in self._fields]
            return _Priced(by_rows, 0.0, np.zeros(len(by_rows)))  # which proves nothing
        return found


@dataclass(frozen=True)
class _Item:
    """Ways to code one component, or the rows of one field, by rising price.

    Args:
        prices: (M,) int64 bits.
        losses: (M,) predicted, falling.
        choices: (M, J) number in `BITS` for each block.
    """

    prices: np.ndarray
    losses: np.ndarray
    choices: np.ndarray


class _Aligned:
    """The items of F fields side by side, to find the best choice of each at a price of a bit; shorter ones are padded.

    Args:
        fields: the items of each.
    """

    def __init__(self, fields: Sequence[Sequence[_Item]]) -> None:
        items = [item for field in fields for item in field]
        shape = len(items), max((len(item.prices) for item in items), default=1)
        self.prices, self.losses = np.zeros(shape), np.full(shape, np.inf)
        for prices, losses, item in zip(self.prices, self.losses, items, strict=True):
            prices[: len(item.prices)], losses[: len(item.losses)] = item.prices, item.losses
        self.field, self.number = np.repeat(np.arange(len(fields)), [len(field) for field in fields]), len(fields)

    def cheapest(self, price: float) -> np.ndarray:
        """(2, F) bits and losses of the choices that minimise loss + price * bits, over the items of each field."""
        row, n = np.arange(len(self.losses)), np.argmin(self.losses + price * self.prices, 1)
        sums = [np.bincount(self.field, of[row, n], self.number) for of in (self.prices, self.losses)]
        return np.stack(sums)


class _Field:
    """The items of a field in either way."""

    def __init__(self, prediction: Prediction) -> None:
        self.cuts, self.dim = prediction.cuts, prediction.dim
        dim, (besides, besides_rows) = prediction.dim, prediction.extra
        rows, (number, components, _) = np.diff(prediction.cuts), prediction.components.shape
        self.fixed = LEVEL * dim + _described(number, components) + besides
        of_bits = np.array(BITS, np.int64)
        self.components = [_component(prediction.components[:, k], rows, LEVEL * dim) for k in range(components)]
        total = int(rows.sum())
        offered = np.flatnonzero(np.isfinite(prediction.rows))
        prices = total * (of_bits[offered] * dim + LEVEL) + _described(1, 1) + besides_rows
        keep = pareto(prices, prediction.rows[offered])
        numbers = offered[keep].astype(np.int8)[:, None]
        self.rows = [_Item(prices[keep], prediction.rows[offered][keep], numbers)]

    @property
    def least(self) -> int:
        return min(self.fixed, int(self.rows[0].prices[0]))

    def items(self, by_rows: bool) -> list[_Item]:
        return self.rows if by_rows else self.components

    def plan(self, by_rows: bool, chosen: Iterator[np.ndarray]) -> Plan:
        """The plan of the choices for the field's items, which are taken from ``chosen``."""
        numbers = [next(chosen) for _ in self.items(by_rows)]
        bits = np.array(BITS, np.uint8)[np.stack(numbers, 1)]  # (J, K)
        if by_rows:
            return Plan(self.cuts[[0, -1]], np.repeat(bits, self.dim, 1), True)
        return Plan(self.cuts, bits, False)


@dataclass(frozen=True)
class _Priced:
    """The ways of F fields at one price of a bit.

    Args:
        by_rows: whether each field is coded by rows.
        bound: no plan within the limit loses less.
        more: (F,) what the other way of each field costs more, at least 0.
    """

    by_rows: list[bool]
    bound: float
    more: np.ndarray

    def others(self) -> Iterator[tuple[float, list[bool]]]:
        """The least loss that is possible with other ways of some fields, and the ways of all; by rising loss."""
        order = np.argsort(self.more, kind="stable").tolist()
        more = [float(self.more[f]) for f in order]
        waiting: list[tuple[float, tuple[int, ...]]] = [(self.bound + more[0], (0,))]  # places in ``order``
        while waiting:
            least, places = heapq.heappop(waiting)
            changed = {order[place] for place in places}
            yield least, [way != (f in changed) for f, way in enumerate(self.by_rows)]
            last, following = places[-1], places[-1] + 1
            if following < len(order):
                heapq.heappush(waiting, (least + more[following], (*places, following)))
                heapq.heappush(waiting, (least - more[last] + more[following], (*places[:-1], following)))


@dataclass(frozen=True)
class _Solved:
    """The best plans for given ways, and their loss."""

    plans: list[Plan]
    loss: float


def _solved(fields: Sequence[_Field], ways: Sequence[bool], bits: int) -> _Solved:
    """Infinite loss if these ways need more bits."""
    fixed = sum(field.fixed for field, by_rows in zip(fields, ways, strict=True) if not by_rows)
    items = [item for field, by_rows in zip(fields, ways, strict=True) for item in field.items(by_rows)]
    if sum(int(item.prices[0]) for item in items) > bits - fixed:
        return _Solved([], np.inf)
    numbers = _exact(items, bits - fixed)
    loss = float(sum(item.losses[n] for item, n in zip(items, numbers, strict=True)))
    chosen = iter([item.choices[n] for item, n in zip(items, numbers, strict=True)])
    return _Solved([field.plan(by_rows, chosen) for field, by_rows in zip(fields, ways, strict=True)], loss)


def _component(losses: np.ndarray, rows: np.ndarray, decoder: int) -> _Item:
    """The combinations of numbers of bits in J blocks that no other combination beats in both price and loss.

    Args:
        losses: (J, N).
        rows: (J,) of the blocks.
        decoder: bits of a row of the decoder.
    """
    of_bits = np.array(BITS, np.int64)
    prices, total, choices = np.zeros(1, np.int64), np.zeros(1), np.zeros((1, 0), np.int8)
    for of_block, number in zip(losses, rows.tolist(), strict=True):
        sums = (prices[:, None] + number * of_bits + 2 * LEVEL * (of_bits > 0)).ravel()
        lost = (total[:, None] + of_block).ravel()
        keep = pareto(sums, lost)
        parent, picked = np.divmod(keep, len(BITS))
        prices, total = sums[keep], lost[keep]
        choices = np.concatenate([choices[parent], picked[:, None].astype(np.int8)], 1)
    return _Item(prices + decoder * (prices > 0), total, choices)


def _exact(items: Sequence[_Item], bits: int) -> list[int]:
    """The number of the choice of every item with the least sum of losses within so many bits."""
    most = max(len(item.prices) for item in items)
    scores = np.full((len(items), most), -np.inf)
    prices = np.full((len(items), most), NO_CANDIDATE)
    unit = max(sum(float(item.losses[0]) for item in items), 1e-300)
    for row, price, item in zip(scores, prices, items, strict=True):
        row[: len(item.losses)] = -item.losses / unit
        price[: len(item.prices)] = item.prices
    chosen = within_budget(scores, prices, bits)
    return [int(n) for n in chosen]
