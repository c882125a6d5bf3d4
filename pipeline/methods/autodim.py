"""AutoDim. Zhao et al. 2021, "AutoDim: Field-aware Embedding Dimension Search in Recommender Systems", WWW."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.evidence import Evidence
from pipeline.data.schema import Schema
from pipeline.embeddings.autodim_supernet import Supernet, decided, supernet
from pipeline.embeddings.folded_mixture import Gain, Sharing, Transform, Unification
from pipeline.embeddings.mixed import MixedTables
from pipeline.workflow.plug import Least


def search(
    schema: Schema,
    dim: int,
    candidates: Sequence[Sequence[int]],
    prices: np.ndarray,
    *,
    temperature: Mapping[str, Any] | None = None,
    warm_up: float = 0.0,
    bytes_weight: Annotated[float, Least(0)] = 0.0,
    dims_weight: Annotated[float, Least(0)] = 0.0,
    sharing: Sharing = "shared",
    unification: Unification = "linear",
    transform: Transform = "field",
    gain: Gain = "field",
    gain_init: float = 0.1,
) -> Supernet:
    """The supernet; its defaults are the paper's, except `FoldedMixture`'s marked departures.

    Args:
        temperature: ``start``, ``rate``, ``floor``, ``per`` of `Selection`.
        warm_up: share of the planned steps with equal weights.
        bytes_weight, dims_weight: of the two penalties; see `Supernet`.
        sharing, unification, transform, gain, gain_init: of `FoldedMixture`.
    """
    return supernet(
        schema,
        dim,
        candidates,
        prices,
        temperature=temperature or {},
        warm_up=warm_up,
        bytes_weight=bytes_weight,
        dims_weight=dims_weight,
        sharing=sharing,
        unification=unification,
        transform=transform,
        gain=gain,
        gain_init=gain_init,
    )


def derive(given: Evidence) -> Allocation:
    """Each field's most probable dimension; see `decided`."""
    return decided("autodim", given)


def build(schema: Schema, dim: int, allocation: Allocation) -> MixedTables:
    return MixedTables(schema, allocation.dims, dim)
