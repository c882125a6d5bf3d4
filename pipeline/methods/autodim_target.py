"""AutoDim for a target in bytes that is known before the search: only bytes beyond the target have a price."""

from __future__ import annotations

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.evidence import Evidence, Problem
from pipeline.embeddings.autodim_supernet import AutoDimSupernet, decided
from pipeline.embeddings.selection import ANNEALED, Temperature
from pipeline.workflow.validation import Budget, Fraction, Rate


def find(
    problem: Problem,
    *,
    target: Budget | None = None,
    weight: Rate = 0.1,
    temperature: Temperature = ANNEALED,
    warm_up: Fraction = 0.5,
) -> AutoDimSupernet:
    """AutoDim's supernet; the architecture's loss has the term ``weight * max(0, expected bytes / target - 1)``.

    NOTE[DIFF]: Zhao et al. 2021 have no such term. It is the memory cost of Joglekar et al. 2020 (NIS), made
    differentiable. A search without a budget never compares the fields at the size to which a knapsack over its scores
    must cut them. Here they compete for the target's bytes during the search.

    Args:
        target: bytes, or a share of the full tables' bytes; a quarter of these if None.
        weight: of the term.
        temperature, warm_up: of `AutoDimSupernet`.
    """
    return AutoDimSupernet(problem, temperature, warm_up, bytes_weight=weight, target=problem.target(target))


def derive(evidence: Evidence) -> Allocation:
    return decided(evidence)
