"""All that a derivation may look at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.schema import Schema


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
    budget: int | None = None
    match: int | None = None

    def __post_init__(self) -> None:
        shape = (len(self.schema), max(map(len, self.candidates), default=0))
        if len(self.candidates) != len(self.schema):
            raise ValueError(f"candidates for {len(self.candidates)} fields, however {len(self.schema)=}")
        for name, array in (("prices", self.prices), ("scores", self.scores)):
            if array is not None and array.shape != shape:
                raise ValueError(f"{name} must have the shape {shape} (fields, candidates), however: {array.shape}")
