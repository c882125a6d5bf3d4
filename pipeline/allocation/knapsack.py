"""The choice of one candidate per field from their scores and prices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.allocation.budget import NO_CANDIDATE, TooFewBytes

HALVINGS = 64  # of the prices among which that of a byte is found
TRIED = 1000  # other candidates for the bytes that are left


def most_probable(scores: np.ndarray, candidates: Sequence[Sequence[int]]) -> np.ndarray:
    """(F,) number of each field's candidate with the best score; ties go to the smaller dim.

    Args:
        scores: (F, N), larger is better; values beyond a field's last candidate are ignored.
        candidates: for each of F fields its candidate dims, ascending.

    Raises:
        ValueError: if a score is NaN or inf, or all scores of a field are -inf.
    """
    _check_scores(scores)
    best = []
    for row, dims in zip(scores, candidates, strict=True):
        n = int(np.argmax(row[: len(dims)]))
        if row[n] == -np.inf:
            raise ValueError(f"one of the candidates {list(dims)} must have a score above -inf; search again")
        best.append(n)
    return np.array(best)


def _check_scores(scores: np.ndarray) -> None:
    if np.isnan(scores).any() or (scores == np.inf).any():
        field, n = np.argwhere(np.isnan(scores) | (scores == np.inf))[0]
        raise ValueError(f"score of field {field}, candidate {n}, is {scores[field, n]}; the search has diverged")


def within_budget(scores: np.ndarray, prices: np.ndarray, budget: int, drop_all: bool = True) -> np.ndarray:
    """The exact choice of one candidate per field with the largest sum of scores within a budget.

    This is the multiple-choice knapsack problem (Sinha & Zoltners 1979). The loss of a choice is the best score of the
    field minus the chosen one. First, `_possible` removes candidates that no optimal choice has. The rest is solved
    field by field over the Pareto-optimal pairs of bytes and loss. For each pair, the linear relaxation of the
    remaining fields is a lower bound on the final loss. The integer part of the relaxation completes the pair to a
    choice, whose loss is an upper bound on the optimum. Pairs whose lower bound exceeds the best upper bound are
    dropped. Losses are whole multiples of 2**-40, so ties are exact.

    Args:
        scores: (F, N), larger is better, e.g. log-probabilities; -inf where there is no candidate.
        prices: (F, N) int64 bytes, in any order.
        budget: bytes.
        drop_all: whether all fields may be dropped, by candidates that cost nothing.

    Returns:
        (F,) int64 number of the candidate of each field. Ties go to fewer bytes.

    Raises:
        TooFewBytes: naming the fewest possible bytes, if no choice fits the budget.
        ValueError: if a score is NaN or inf, or a field has no candidate.
    """
    _check_scores(scores)
    if scores.shape != prices.shape:
        raise ValueError(f"scores and prices must have the same shape, got {scores.shape=}, {prices.shape=}")
    offered = (scores > -np.inf) & (prices < NO_CANDIDATE)
    _check_least(np.where(offered, prices, NO_CANDIDATE), budget)
    of_candidates = np.where(offered, _losses(scores), NO_CANDIDATE)
    possible = _possible(of_candidates, prices, budget)
    chosen, several = np.argmax(possible, 1), possible.sum(1) > 1
    spent = int(prices[~several, chosen[~several]].sum())
    # Fields with wide price ranges come first: the bounds from the remaining fields are then close together.
    best = of_candidates == of_candidates.min(1, keepdims=True)
    ranges = np.where(best, prices, NO_CANDIDATE).min(1) - np.where(offered, prices, NO_CANDIDATE).min(1)
    order = sorted(np.flatnonzero(several).tolist(), key=lambda f: ranges[f], reverse=True)
    fields = [_frontier(np.where(possible[f], of_candidates[f], NO_CANDIDATE), prices[f]) for f in order]
    chosen[order] = _least_loss(fields, budget - spent)
    if not drop_all and not prices[np.arange(len(chosen)), chosen].any():
        _keep_one(chosen, scores, prices, budget)
    return chosen


def _least_loss(fields: Sequence[_Frontier], budget: int) -> list[int]:
    """The candidate of each field, in the choice with the least loss within a budget; see `within_budget`."""
    size, loss = np.zeros(1, np.int64), np.zeros(1, np.int64)
    steps: list[tuple[np.ndarray, np.ndarray]] = []
    incumbent = NO_CANDIDATE
    for field, rest in zip(fields, _relaxations(fields), strict=True):
        sizes = (size[:, None] + field.prices).ravel()
        losses = (loss[:, None] + field.losses).ravel()
        fits = np.flatnonzero(sizes <= budget - rest.sizes[0])
        sizes, losses = sizes[fits], losses[fits]
        left = budget - sizes
        reached = np.searchsorted(rest.sizes, left, side="right") - 1
        incumbent = min(incumbent, int((losses + rest.losses[reached]).min()))
        slack = 1 + 1e-12 * incumbent  # covers the rounding of the interpolation
        bound = losses + np.interp(left, rest.sizes, rest.losses)
        keep = np.flatnonzero(bound <= incumbent + slack)
        keep = keep[pareto(sizes[keep], losses[keep])]
        size, loss = sizes[keep], losses[keep]
        parent, picked = np.divmod(fits[keep], len(field.prices))
        steps.append((parent, field.candidates[picked]))

    state = len(size) - 1  # the pair with the least loss
    chosen = []
    for parent, candidate in reversed(steps):
        chosen.append(int(candidate[state]))
        state = int(parent[state])
    return chosen[::-1]


def _keep_one(chosen: np.ndarray, scores: np.ndarray, prices: np.ndarray, budget: int) -> None:
    """Replace a choice that drops all fields by the one that keeps the field with the smallest loss of score."""
    offered = (scores > -np.inf) & (prices > 0) & (prices < NO_CANDIDATE)
    least = int(np.where(offered, prices, NO_CANDIDATE).min())
    if least > budget:
        raise TooFewBytes(
            f"no choice that keeps a field costs {budget:,} bytes or less: the least is {least:,} bytes; raise the "
            "budget or offer smaller dims"
        )
    gains = np.where(offered & (prices <= budget), scores - scores[np.arange(len(chosen)), chosen][:, None], -np.inf)
    places = np.argwhere(gains == gains.max())
    f, n = min(places.tolist(), key=lambda place: prices[tuple(place)])
    chosen[f] = n


def _losses(scores: np.ndarray) -> np.ndarray:
    """(F, N) int64: the field's best score minus each score, in units of 2**-40, or coarser if sums would overflow."""
    loss = scores.astype(np.float64).max(1, keepdims=True) - scores
    finite = np.isfinite(loss)
    largest = float(np.where(finite, loss, 0).max()) * len(scores)
    unit = 2.0 ** min(40, 60 - int(np.ceil(np.log2(max(largest, 1)))))
    return np.where(finite, np.rint(np.where(finite, loss, 0) * unit).astype(np.int64), NO_CANDIDATE)


def _check_least(prices: np.ndarray, budget: int) -> None:
    least = prices.min(1)
    if (least == NO_CANDIDATE).any():
        raise ValueError(f"field {int(np.argmax(least))} has no candidate")
    if int(least.sum()) > budget:
        raise TooFewBytes(
            f"no choice costs {budget:,} bytes or less: the least is {int(least.sum()):,} bytes, for the cheapest "
            "candidate of every field; raise the budget or offer smaller dims"
        )


@dataclass(frozen=True)
class _Frontier:
    """The Pareto-optimal candidates of a field: prices ascend and losses descend."""

    prices: np.ndarray
    losses: np.ndarray
    candidates: np.ndarray


def _frontier(losses: np.ndarray, prices: np.ndarray) -> _Frontier:
    offered = np.flatnonzero((losses < NO_CANDIDATE) & (prices < NO_CANDIDATE))
    keep = offered[pareto(prices[offered], losses[offered])]
    return _Frontier(prices[keep], losses[keep], keep)


def pareto(sizes: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """Positions of the Pareto-optimal pairs of size and loss, sorted by size."""
    order = np.lexsort((losses, sizes))
    best = np.minimum.accumulate(losses[order])
    return order[np.concatenate([[True], best[1:] < best[:-1]])] if len(order) else order


def _possible(losses: np.ndarray, prices: np.ndarray, budget: int) -> np.ndarray:
    """(F, N) the candidates that an optimal choice can have, and perhaps others.

    At any price of a byte, every choice within the budget loses at least a bound, plus what its candidates cost more
    than the cheapest ones of their fields. So a candidate is impossible if that is above the loss of a choice that is
    known (Dyer, Kayal & Walker 1984). The price is the least at which the cheapest candidates fit, and the known choice
    has these, and the best others for the bytes that are left.
    """
    own, offered = np.arange(len(losses)), losses < NO_CANDIDATE
    loss, size = np.where(offered, losses, np.inf), np.where(offered, prices, 0.0)

    def cheapest(price: float) -> tuple[np.ndarray, int]:
        chosen = np.argmin(loss + price * size, 1)
        return chosen, int(prices[own, chosen].sum())

    low, price = 2.0**-64, 2.0**64
    chosen, taken = cheapest(price)
    for _ in range(HALVINGS):
        middle = (low * price) ** 0.5
        tried, need = cheapest(middle)
        low, price = (middle, price) if need > budget else (low, middle)
        if need <= budget:
            chosen, taken = tried, need
    known, left = int(losses[own, chosen].sum()), budget - taken
    costs = loss + price * size
    over = costs - costs.min(1, keepdims=True)
    extra, gain = size - size[own, chosen][:, None], loss[own, chosen][:, None] - loss
    better = np.argwhere((extra <= left) & (gain > 0))
    better = better[np.argsort(over[tuple(better.T)], kind="stable")[:TRIED]]
    changed = set()
    for f, n in better.tolist():
        if f not in changed and extra[f, n] <= left:
            changed.add(f)
            known, left = known - int(gain[f, n]), left - int(extra[f, n])
    bound = float(costs.min(1).sum()) - price * budget
    return over <= known - bound + 1 + 1e-12 * (known + price * budget)  # covers the rounding of the sums


@dataclass(frozen=True)
class _Relaxation:
    """The linear relaxation of some fields: the least loss by bytes. It is a choice of whole candidates at its points.

    Args:
        sizes: bytes of the points, ascending.
        losses: of the points, descending; the bound is linear between two points.
    """

    sizes: np.ndarray
    losses: np.ndarray


def _relaxations(fields: Sequence[_Frontier]) -> list[_Relaxation]:
    """For each field, the relaxation of all fields after it."""
    hulls = [_hull(field) for field in fields]
    rests = []
    size = loss = 0
    extra, gains = np.empty(0, np.int64), np.empty(0, np.int64)
    for field, hull in zip(reversed(fields), reversed(hulls), strict=True):
        order = np.argsort(-(gains / extra), kind="stable")
        rests.append(
            _Relaxation(
                size + np.concatenate([[0], np.cumsum(extra[order])]),
                loss - np.concatenate([[0], np.cumsum(gains[order])]),
            )
        )
        size, loss = size + int(field.prices[0]), loss + int(field.losses[0])
        extra = np.concatenate([extra, np.diff(field.prices[hull])])
        gains = np.concatenate([gains, -np.diff(field.losses[hull])])
    return rests[::-1]


def _hull(field: _Frontier) -> list[int]:
    """The corners of the lower convex hull of (price, loss)."""
    price, loss = field.prices.tolist(), field.losses.tolist()
    corners: list[int] = []
    for i in range(len(price)):
        while len(corners) > 1:
            a, b = corners[-2:]
            if (loss[a] - loss[b]) * (price[i] - price[a]) > (loss[a] - loss[i]) * (price[b] - price[a]):
                break
            corners.pop()
        corners.append(i)
    return corners
