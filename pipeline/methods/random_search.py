"""Random search (RaS): the best of several random allocations of one size. A control in Zhao et al. 2021, WWW.

Its result and its cost rise with the number of draws, the option ``draws``.
"""

from __future__ import annotations

import numpy as np

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.budget import TooFewBytes
from pipeline.allocation.draw import sample_below
from pipeline.allocation.evidence import Evidence, Problem
from pipeline.workflow.validation import Budget, Count


def find(problem: Problem, *, draws: Count = 8, target: Budget | None = None) -> list[Allocation]:
    """Random allocations that fill the target; all choices of candidates that fill it are equally probable.

    NOTE[DIFF]: the paper draws from choices of any size, and does not say how many. Most choices are far larger than a
    small budget, and the larger of two sizes is usually better, whatever its dimensions.

    Args:
        draws: number of allocations to draw and train; fewer are trained if some are drawn twice.
        target: bytes, or a share of the full tables' bytes; a quarter of these if None.
    """
    limit, rng = problem.target(target), np.random.default_rng(problem.seed)
    drawn = [tuple(sample_below(problem.prices, limit, lambda: rng).tolist()) for _ in range(draws)]
    return [problem.chosen(np.array(numbers)) for numbers in dict.fromkeys(drawn)]


def derive(evidence: Evidence) -> Allocation:
    """The best proposal on ``val`` within the budget, or the best of all without a budget; ties go to the smaller.

    Raises:
        ValueError: if no proposal was trained.
        TooFewBytes: if no proposal fits the budget; the message says the fewest bytes of any.
    """
    if not evidence.trials:
        raise ValueError("random_search needs the trials of its proposals, got none; search before you derive")
    budget = evidence.budget
    fitting = [trial for trial in evidence.trials if budget is None or trial.bytes <= budget]
    if not fitting:
        least = min(trial.bytes for trial in evidence.trials)
        raise TooFewBytes(
            f"random_search: no proposal has {budget:,} bytes or less, the least is {least:,}; raise the budget, "
            "or set the option target to search for it"
        )
    return max(fitting, key=lambda trial: (trial.quality, -trial.bytes)).allocation
