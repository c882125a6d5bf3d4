"""AutoDim-s: weights and architecture on the same batches. Zhao et al. 2021, "AutoDim", WWW, compared methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.evidence import Evidence
from pipeline.data.schema import Schema
from pipeline.embeddings.autodim_supernet import ANNEALED, Supernet, decided, supernet
from pipeline.embeddings.mixed import MixedTables

ARCHITECTURE = {"level": "single"}  # the training batch's own gradient, in the weights' step


def search(
    schema: Schema,
    dim: int,
    candidates: Sequence[Sequence[int]],
    prices: np.ndarray,
    *,
    temperature: Mapping[str, Any] = ANNEALED,
    warm_up: float = 0.5,
) -> Supernet:
    """AutoDim's supernet.

    NOTE[DIFF]: temperature and warm-up are by the length of the run, as the main job's are; the paper's are for
    millions of steps. No price of bytes or dimensions: they would be the loss of ``arch``, which has no part here.

    Args:
        temperature, warm_up: of `supernet`.
    """
    return supernet(schema, dim, candidates, prices, temperature=temperature, warm_up=warm_up)


def derive(given: Evidence) -> Allocation:
    """Each field's most probable dimension; see `decided`.

    NOTE[DIFF]: the paper does not say how AutoDim-s decides. That it reports fewer parameters than the full tables
    means that something is decided; here it is what AutoDim itself does.
    """
    return decided("autodim_s", given)


def build(schema: Schema, dim: int, allocation: Allocation) -> MixedTables:
    return MixedTables(schema, allocation.dims, dim)
