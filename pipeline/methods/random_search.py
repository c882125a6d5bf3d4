"""Random search (RaS): the best of several random allocations of one size. A control in Zhao et al. 2021, WWW.

Its result is worth what its draws cost: `propose` takes their number, and ``scores.json`` holds each with its AUC.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.budget import TooFewBytes, in_bytes
from pipeline.allocation.draw import sample
from pipeline.allocation.evidence import DEFAULT_SHARE, Evidence
from pipeline.data.schema import Schema
from pipeline.embeddings.cost import full_tables
from pipeline.embeddings.mixed import MixedTables
from pipeline.workflow.plug import Least

WINDOWS = (0.02, 0.1, 0.5, 1.0)  # shares of the target that a draw may stay below it by, the first that holds any


def propose(
    schema: Schema,
    dim: int,
    candidates: Sequence[Sequence[int]],
    prices: np.ndarray,
    rng: np.random.Generator,
    *,
    draws: Annotated[int, Least(1)] = 8,
    target: float | None = None,
) -> list[Allocation]:
    """Allocations that fill the target; every choice of candidates that does is equally probable.

    NOTE[DIFF]: the paper draws from all choices, of any size, and does not say how many. Most of them are far larger
    than a small budget, and of two sizes the larger is usually the better, whatever its dimensions.

    Args:
        draws: allocations, each of which is trained; fewer if some are drawn twice.
        target: bytes, or a share of the full tables'; None is a quarter of them.
    """
    limit = in_bytes(DEFAULT_SHARE if target is None else target, full_tables(schema, dim).bytes)
    chosen = dict.fromkeys(tuple(_drawn(prices, limit, rng).tolist()) for _ in range(draws))
    return [
        Allocation(
            "random_search", {name: int(c[n]) for name, c, n in zip(schema.names, candidates, choice, strict=True)}
        )
        for choice in chosen
    ]


def _drawn(prices: np.ndarray, limit: int, rng: np.random.Generator) -> np.ndarray:
    """(F,) candidates of at most ``limit`` bytes, and not much less where there are such."""
    for window in WINDOWS[:-1]:
        try:
            return sample(prices, int(limit * (1 - window)), limit, rng)
        except ValueError:
            continue
    return sample(prices, int(limit * (1 - WINDOWS[-1])), limit, rng)


def derive(given: Evidence) -> Allocation:
    """Of the proposals within the budget, or of all, the best on ``val``; ties to the smaller.

    Raises:
        TooFewBytes: if none is within the budget; says the least bytes of any.
    """
    if not given.trials:
        raise ValueError("random_search needs the trials of its proposals; none were given")
    fitting = [trial for trial in given.trials if given.budget is None or trial.bytes <= given.budget]
    if not fitting:
        least = min(trial.bytes for trial in given.trials)
        raise TooFewBytes(
            f"random_search: no proposal has {given.budget:,} bytes or less, the least is {least:,}; raise the budget, "
            "or search for it: option 'target'"
        )
    return max(fitting, key=lambda trial: (trial.auc, -trial.bytes)).allocation


def build(schema: Schema, dim: int, allocation: Allocation) -> MixedTables:
    return MixedTables(schema, allocation.dims, dim)
