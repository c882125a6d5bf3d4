"""Random choices of one candidate per field within a window of bytes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pipeline.allocation.budget import NO_CANDIDATE

MAX_CELLS = 2**23  # cells of the table of counts, 8 bytes each
BELOW = (0.02, 0.1, 0.5, 1.0)  # depths of the window below a limit, as shares of the limit, tried in this order


def sample(prices: np.ndarray, low: int, high: int, rng: np.random.Generator) -> np.ndarray:
    """One candidate per field, drawn uniformly from all choices whose bytes are within [low, high].

    The choices are counted by their bytes on a grid, and drawn in proportion to the counts. A draw whose exact bytes
    are outside the window is rejected, so the probability of a choice does not depend on the grid.

    Args:
        prices: (F, N) int64 bytes; `NO_CANDIDATE` where a field has fewer than N candidates.
        low, high: bytes, inclusive.
        rng: source of the draw.

    Returns:
        (F,) int64 number of the candidate of each field.

    Raises:
        ValueError: naming the possible bytes, if no choice is within the window or none was drawn.
    """
    if not 0 <= low <= high:
        raise ValueError(f"a window of bytes must have 0 <= low <= high, got {low=}, {high=}")
    offered = prices < NO_CANDIDATE
    least = int(np.where(offered, prices, NO_CANDIDATE).min(1).sum()) if offered.any(1).all() else -1
    if least < 0:
        raise ValueError(f"field {int(np.argmin(offered.any(1)))} has no candidate")
    most = int(np.where(offered, prices, 0).max(1).sum())
    if least > high or most < low:
        raise ValueError(
            f"no choice costs {low:,} to {high:,} bytes: the least is {least:,} and the most {most:,}; change the "
            "budget or the candidates"
        )
    high = min(high, most)
    low = max(low, least)
    finest = max(1, -(-high * len(prices) // MAX_CELLS))
    grid = max(finest, (high - low) // (4 * len(prices)))
    while True:
        counts = _Counts(prices, high, grid)
        chosen = counts.draw(low, high, rng)
        if chosen is not None:
            return chosen
        if grid == finest or not counts.possible(low, high):
            break
        grid = max(finest, grid // 8)
    raise ValueError(
        f"found no choice that costs {low:,} to {high:,} bytes, though {least:,} to {most:,} are possible; widen the "
        "window"
    )


def sample_below(prices: np.ndarray, limit: int, rng: Callable[[], np.random.Generator]) -> np.ndarray:
    """One candidate per field, of at most ``limit`` bytes in total and close to them if possible; see `sample`.

    The windows of `BELOW` are tried in turn, until one has a choice.

    Args:
        prices: (F, N) int64 bytes.
        limit: bytes.
        rng: makes the source of the draw for each window.

    Raises:
        ValueError: naming the possible bytes, if no choice is within the limit.
    """
    for share in BELOW[:-1]:
        try:
            return sample(prices, int(limit * (1 - share)), limit, rng())
        except ValueError:
            continue
    return sample(prices, int(limit * (1 - BELOW[-1])), limit, rng())


class _Counts:
    """Number of choices by their bytes on a grid.

    Every price is rounded down to a multiple of ``grid``, so the rounded bytes of a choice are less than F * grid below
    its exact bytes. The window is therefore lowered by F * grid to contain the rounded bytes of all valid choices.

    ``tables[f][c]`` is proportional to the number of choices for fields f, f + 1, ... whose rounded bytes are
    c * grid.
    """

    DRAWS = 64  # of a round
    ROUNDS = 64

    def __init__(self, prices: np.ndarray, high: int, grid: int) -> None:
        self.prices, self.grid = prices, grid
        self.cells = np.where(prices <= high, prices // grid, -1)  # -1: never affordable
        size = high // grid + 1
        last = np.zeros(size)
        last[0] = 1
        tables = [last]
        for row in self.cells[::-1]:
            table = np.zeros(size)
            for cell in row[row >= 0].tolist():
                table[cell:] += tables[-1][: size - cell]
            tables.append(table / max(table.max(), 1.0))
        self.tables = tables[::-1]

    def _window(self, low: int, high: int) -> tuple[int, np.ndarray]:
        """The first cell of the lowered window, and the counts of all its cells."""
        first = max(0, low // self.grid - len(self.prices))
        return first, self.tables[0][first : high // self.grid + 1]

    def possible(self, low: int, high: int) -> bool:
        """Whether [low, high] may contain a choice; False is certain."""
        return bool(self._window(low, high)[1].any())

    def draw(self, low: int, high: int, rng: np.random.Generator) -> np.ndarray | None:
        """(F,) a choice within [low, high]; None if no round draws one."""
        first, weights = self._window(low, high)
        if not weights.any():
            return None
        for _ in range(self.ROUNDS):
            left = first + _draw(np.broadcast_to(weights, (self.DRAWS, len(weights))), rng)
            chosen = np.empty((self.DRAWS, len(self.prices)), np.int64)
            for f, row in enumerate(self.cells):
                rest = np.where(row >= 0, left[:, None] - row, -1)
                odds = np.where(rest >= 0, self.tables[f + 1][np.maximum(rest, 0)], 0.0)
                chosen[:, f] = _draw(odds, rng)
                left = left - row[chosen[:, f]]
            total = np.take_along_axis(self.prices, chosen.T, axis=1).sum(0)
            inside = np.flatnonzero((total >= low) & (total <= high))
            if len(inside):
                return chosen[inside[0]]
        return None


def _draw(weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(R,) a random column for each row of ``weights`` (R, C), with probabilities in proportion to the row."""
    upto = np.cumsum(weights, axis=1)
    threshold = rng.random((len(weights), 1)) * upto[:, -1:]
    return (upto <= threshold).sum(1)
