"""AutoDim for a number of bytes that is known beforehand: only what exceeds it has a price in the search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.budget import in_bytes
from pipeline.allocation.evidence import DEFAULT_SHARE, Evidence
from pipeline.data.schema import Schema
from pipeline.embeddings.autodim_supernet import ANNEALED, Supernet, decided, supernet
from pipeline.embeddings.cost import full_tables
from pipeline.embeddings.mixed import MixedTables
from pipeline.workflow.plug import Least


def search(
    schema: Schema,
    dim: int,
    candidates: Sequence[Sequence[int]],
    prices: np.ndarray,
    *,
    target: float | None = None,
    weight: Annotated[float, Least(0)] = 0.1,
    temperature: Mapping[str, Any] = ANNEALED,
    warm_up: float = 0.5,
) -> Supernet:
    """AutoDim's supernet, whose architecture's loss holds ``weight * max(0, expected bytes / target - 1)``.

    NOTE[DIFF]: Zhao et al. 2021 have no such term; the form is the memory cost of Joglekar et al. 2020 (NIS), made
    differentiable. A knapsack over the scores of a search that knew no budget has to cut what was never compared at
    that size; here the fields compete for the target's bytes while they are searched.

    Args:
        target: bytes, or a share of the full tables'; None is a quarter of them.
        weight: of the term.
        temperature, warm_up: of `supernet`.
    """
    limit = in_bytes(DEFAULT_SHARE if target is None else target, full_tables(schema, dim).bytes)
    return supernet(
        schema,
        dim,
        candidates,
        prices,
        temperature=temperature,
        warm_up=warm_up,
        bytes_weight=weight,
        target=limit,
    )


def derive(given: Evidence) -> Allocation:
    """The most probable choice within the budget; without one, each field's most probable dimension. See `decided`."""
    return decided("autodim_target", given)


def build(schema: Schema, dim: int, allocation: Allocation) -> MixedTables:
    return MixedTables(schema, allocation.dims, dim)
