"""The inputs of a method: the problem of its search, and the evidence for its derivation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.budget import DEFAULT_SHARE, in_bytes
from pipeline.data.schema import Schema


@dataclass(frozen=True, eq=False, kw_only=True)
class Problem:
    """The question of a search: which dimension does each field need?

    Args:
        method: name of the method.
        schema: F fields.
        dim: D, the dimension of every field after its embedding.
        candidates: for each field its candidate dims, ascending.
        prices: (F, N) int64 bytes of each candidate; `NO_CANDIDATE` where a field has fewer than N.
        full_bytes: bytes of the full tables.
        seed: of all random draws of the method.
        training_ids: reads the ids (n, S) of the training rows; None if there are no rows.

    Raises:
        ValueError: if the candidates or prices do not fit the schema.
    """

    method: str
    schema: Schema
    dim: int
    candidates: tuple[tuple[int, ...], ...]
    prices: np.ndarray
    full_bytes: int
    seed: int = 0
    training_ids: Callable[[], np.ndarray] | None = None

    def __post_init__(self) -> None:
        if len(self.candidates) != len(self.schema):
            raise ValueError(f"candidates must be given for {len(self.schema)} fields, got {len(self.candidates)}")
        self._check_shape("prices", self.prices)

    def _check_shape(self, name: str, array: np.ndarray) -> None:
        shape = (len(self.schema), max(map(len, self.candidates), default=0))
        if array.shape != shape:
            raise ValueError(f"{name} must have the shape {shape} (fields, candidates), got {array.shape}")

    def target(self, budget: float | None) -> int:
        """Bytes of a budget as params.yaml states it; a quarter of the full tables' bytes if it is None."""
        return in_bytes(DEFAULT_SHARE if budget is None else budget, self.full_bytes)

    def allocation(
        self,
        dims: Mapping[str, int] | int,
        settings: Mapping[str, Any] | None = None,
        arrays: Mapping[str, np.ndarray] | None = None,
    ) -> Allocation:
        """An allocation for this method.

        Args:
            dims: dimension of each field, by name; or one dimension for all fields.
            settings, arrays: see `Allocation`.
        """
        named = dict.fromkeys(self.schema.names, dims) if isinstance(dims, int) else dict(dims)
        plain = {name: int(d) for name, d in named.items()}
        return Allocation(self.method, plain, dict(settings or {}), dict(arrays or {}))

    def chosen(self, numbers: np.ndarray) -> Allocation:
        """An allocation of one candidate per field.

        Args:
            numbers: (F,) index of each field's candidate.
        """
        pairs = zip(self.schema.names, self.candidates, numbers, strict=True)
        return self.allocation({name: dims[n] for name, dims, n in pairs})


@dataclass(frozen=True)
class Trial:
    """A proposal of a method after its training.

    Args:
        allocation: the proposal.
        quality: the task's first metric on ``val``; more is better.
        bytes: of the embedding.
    """

    allocation: Allocation
    quality: float
    bytes: int


@dataclass(frozen=True, eq=False, kw_only=True)
class Evidence(Problem):
    """The input of a derivation: the problem, and the findings of the search.

    Args:
        scores: (F, N) log-probabilities of the candidates, larger is better, -inf where a field has fewer than N; None
            if the method does not score candidates.
        arrays: from the method's ``find`` or its supernet.
        trials: the proposals of the method after training.
        budget: largest number of bytes of the allocation; None for no limit.
        match: bytes that a control should match; None if the allocation is no control.
    """

    scores: np.ndarray | None = None
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    trials: tuple[Trial, ...] = ()
    budget: int | None = None
    match: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scores is not None:
            self._check_shape("scores", self.scores)

    @property
    def limit(self) -> int:
        """The bytes that an allocation may take: the smaller of ``budget`` and ``match``.

        If both are None, it is a quarter of the full tables' bytes, for methods that need a limit.
        """
        sizes = [size for size in (self.budget, self.match) if size is not None]
        return min(sizes, default=self.target(None))
