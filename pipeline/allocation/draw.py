"""A random choice of one candidate per field within a window of bytes."""

from __future__ import annotations

import numpy as np

from pipeline.allocation.budget import NO_CANDIDATE

MAX_CELLS = 2**23  # of the table of counts that `sample` fills, 8 bytes each


def sample(prices: np.ndarray, low: int, high: int, rng: np.random.Generator) -> np.ndarray:
    """One choice of a candidate per field, drawn uniformly from all whose bytes lie within [low, high].

    Counts choices by their bytes on a grid, draws in proportion to the counts, and rejects what the exact
    bytes put outside; every choice inside has the same probability whatever the grid.

    Args:
        prices: (F, N) int64 bytes; the largest int64 where a field has fewer than N candidates.
        low, high: bytes, inclusive.
        rng: source of the draw.

    Returns:
        (F,) int64 candidate of each field.

    Raises:
        ValueError: if no choice lies within; says what bytes are possible.
    """
    if not 0 <= low <= high:
        raise ValueError(f"a window of bytes needs 0 <= low <= high, however: {low=}, {high=}")
    offered = prices < NO_CANDIDATE
    least = int(np.where(offered, prices, NO_CANDIDATE).min(1).sum()) if offered.any(1).all() else -1
    if least < 0:
        raise ValueError(f"field {int(np.argmin(offered.any(1)))} has no candidate")
    most = int(np.where(offered, prices, 0).max(1).sum())
    if least > high or most < low:
        raise ValueError(
            f"no choice costs {low} to {high} bytes: the least is {least} and the most {most}; change the budget "
            "or the candidates"
        )
    high = min(high, most)
    low = max(low, least)
    finest = max(1, -(-high * len(prices) // MAX_CELLS))
    grid = max(finest, (high - low) // (4 * len(prices)))
    while True:
        counted = _Counts(prices, high, grid)
        chosen = counted.draw(low, high, rng)
        if chosen is not None:
            return chosen
        if grid == finest or not counted.possible(low, high):
            break
        grid = max(finest, grid // 8)
    raise ValueError(
        f"found no choice that costs {low} to {high} bytes, though {least} to {most} are possible; widen the window"
    )


class _Counts:
    """Number of choices by bytes, on a grid.

    Every price is rounded down to a multiple of ``grid``, so a choice's rounded bytes lie below its exact ones
    by less than F * grid, and the cells of a window widened downwards by that hold all choices inside it.

    ``tables[f][c]`` is proportional to the number of choices for the fields from f on with rounded bytes c.
    """

    DRAWS = 64  # at once
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
        first = max(0, low // self.grid - len(self.prices))
        return first, self.tables[0][first : high // self.grid + 1]

    def possible(self, low: int, high: int) -> bool:
        """False if surely no choice lies within [low, high]."""
        return bool(self._window(low, high)[1].any())

    def draw(self, low: int, high: int, rng: np.random.Generator) -> np.ndarray | None:
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
    """One column of each row of weights (R, C), in proportion to them."""
    upto = np.cumsum(weights, axis=1)
    threshold = rng.random((len(weights), 1)) * upto[:, -1:]
    return (upto <= threshold).sum(1)
