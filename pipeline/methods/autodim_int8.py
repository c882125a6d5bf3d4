"""AutoDim's dimensions, in tables of 8 bits: candidates are priced as they are stored. Zhao et al. 2021, WWW."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.evidence import Evidence
from pipeline.data.schema import Schema
from pipeline.embeddings.autodim_supernet import ANNEALED, Supernet, decided, supernet
from pipeline.embeddings.rounded import QuantisedTables
from pipeline.workflow.plug import Least


def search(
    schema: Schema,
    dim: int,
    candidates: Sequence[Sequence[int]],
    prices: np.ndarray,
    *,
    temperature: Mapping[str, Any] = ANNEALED,
    warm_up: float = 0.5,
    bytes_weight: Annotated[float, Least(0)] = 0.0,
    dims_weight: Annotated[float, Least(0)] = 0.0,
) -> Supernet:
    """AutoDim's supernet in float32; only what it chooses is rounded, after its training.

    Args:
        temperature, warm_up, bytes_weight, dims_weight: of `supernet`.
    """
    return supernet(
        schema,
        dim,
        candidates,
        prices,
        temperature=temperature,
        warm_up=warm_up,
        bytes_weight=bytes_weight,
        dims_weight=dims_weight,
    )


def derive(given: Evidence) -> Allocation:
    """Each field's most probable dimension; see `decided`."""
    return decided("autodim_int8", given)


def build(schema: Schema, dim: int, allocation: Allocation) -> QuantisedTables:
    return QuantisedTables(schema, allocation.dims, dim, bits=8)
