"""All that a derivation may look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from pipeline.allocation.allocation import Allocation
from pipeline.data.schema import Schema

DEFAULT_SHARE = 0.25  # of the full tables' bytes: for a method that needs a limit, where none is given


@dataclass(frozen=True)
class Trial:
    """An allocation that a method proposed, and that was trained.

    Args:
        auc: on ``val``, of its best epoch.
        bytes: of its embedding.
    """

    allocation: Allocation
    auc: float
    bytes: int


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a method's ``derive`` is given.

    Args:
        schema: F fields.
        dim: D, the width that the backbone sees.
        candidates: for each field its candidate dims, ascending.
        prices: (F, N) int64 bytes of each candidate; the largest int64 where a field has fewer than N.
        full_bytes: bytes of the full tables.
        seed: for derivations that draw.
        scores: (F, N) log-probabilities of the candidates, larger is better, -inf where a field has fewer
            than N; None if nothing was searched.
        found: arrays that the search left for its own method's ``derive``, see `FieldEmbedding.found`.
        trials: of a method that proposes allocations.
        budget: bytes that the allocation may cost at most, or None.
        match: bytes that a control's allocation has to come near, or None.
    """

    schema: Schema
    dim: int
    candidates: tuple[tuple[int, ...], ...]
    prices: np.ndarray
    full_bytes: int
    seed: int = 0
    scores: np.ndarray | None = None
    found: Mapping[str, np.ndarray] = field(default_factory=dict)
    trials: tuple[Trial, ...] = ()
    budget: int | None = None
    match: int | None = None

    def __post_init__(self) -> None:
        shape = (len(self.schema), max(map(len, self.candidates), default=0))
        if len(self.candidates) != len(self.schema):
            raise ValueError(f"candidates for {len(self.candidates)} fields, however {len(self.schema)=}")
        for name, array in (("prices", self.prices), ("scores", self.scores)):
            if array is not None and array.shape != shape:
                raise ValueError(f"{name} must have the shape {shape} (fields, candidates), however: {array.shape}")

    @property
    def limit(self) -> int:
        """Bytes for a method that cannot do without a limit: those to match, the budget, or `DEFAULT_SHARE`."""
        given = [size for size in (self.budget, self.match) if size is not None]
        return min(given, default=int(self.full_bytes * DEFAULT_SHARE))
