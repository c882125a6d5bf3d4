"""AutoSrh. Kong et al. 2023, "AutoSrh: An Embedding Dimensionality Search Framework for Tabular Data Prediction".

Cheng et al. 2020, "Differentiable Neural Input Search for Recommender Systems", is its first form.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.evidence import Evidence
from pipeline.data.schema import Schema
from pipeline.embeddings.batch import Occurrences, spread
from pipeline.embeddings.contract import FieldEmbedding
from pipeline.embeddings.kept_cells import Masked, keep_most_important
from pipeline.embeddings.mixed import MixedTables
from pipeline.embeddings.table import Table
from pipeline.workflow.plug import Least


class Supernet(FieldEmbedding):
    """A full table whose rows are multiplied with the relevances of their block: e' = e * alpha.

    A block is a share of a field's values, by falling frequency. Relevances start at 1 and stay within 0 and 1.

    Args:
        shares: of the values of a field, in the order of their frequency; they add up to 1.
        warm_up: share of the planned steps before the relevances are trained.

    NOTE[DIFF]: the paper divides a block's gradient by its mean absolute value and takes SGD steps. The architecture
    is trained by Adam here, which makes steps of equal length of it too.
    """

    def __init__(self, schema: Schema, dim: int, shares: Sequence[float], warm_up: float) -> None:
        super().__init__()
        if not shares or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
            raise ValueError(f"shares of the values must be above 0 and add up to 1, however: {list(shares)}")
        if not 0 <= warm_up < 1:
            raise ValueError(f"warm_up is a share of the planned steps, 0 <= warm_up < 1, however: {warm_up=}")
        self.dim, self.warm_up = dim, warm_up
        self.table = Table(schema.num_rows, dim)  # first, so that what is trained of equal seed starts the same
        self.alpha = nn.Parameter(torch.ones(len(schema) * len(shares), dim))
        self.register_buffer("block", torch.from_numpy(blocks(schema, shares)), persistent=False)  # (V,)
        self._warming = warm_up > 0

    block: Tensor

    def forward(self, occ: Occurrences) -> Tensor:
        """Occurrences -> (B, F, D)."""
        alpha = self.alpha.index_select(0, self.block.index_select(0, occ.rows))
        return spread(self.table(occ.rows) * alpha, occ)

    def arch_parameters(self) -> list[nn.Parameter]:
        return [self.alpha]

    @torch.no_grad()
    def before_step(self, step: int, planned: int) -> None:
        """After every step of the architecture comes one of the weights: here its relevances are clamped."""
        self.alpha.clamp_(0, 1)
        self._warming = step < math.ceil(self.warm_up * planned)

    def warming(self) -> bool:
        return self._warming

    @torch.no_grad()
    def watched(self) -> dict[str, float]:
        return {"alpha/mean": float(self.alpha.clamp(0, 1).mean())}

    def packed(self) -> dict[str, Tensor]:
        return {"table": self.table.weight.detach(), "alpha": self.alpha.detach()}

    @torch.no_grad()
    def found(self) -> dict[str, np.ndarray]:
        """Absolute value of each cell with its relevance, (V, D) float16."""
        relevant = self.table.weight * self.alpha.clamp(0, 1).index_select(0, self.block)
        return {"importance": relevant.abs_().half().cpu().numpy()}


def blocks(schema: Schema, shares: Sequence[float]) -> np.ndarray:
    """(V,) int64 block of each row, numbered field by field; ids are in the order of their frequency."""
    ends = np.cumsum(shares)[:-1]
    return np.concatenate(
        [
            f * len(shares) + np.searchsorted(ends, (np.arange(n) + 0.5) / n)
            for f, n in enumerate(schema.cardinalities.tolist())
        ]
    )


def search(
    schema: Schema,
    dim: int,
    candidates: Sequence[Sequence[int]],
    prices: np.ndarray,
    *,
    shares: Sequence[float] = (0.1, 0.2, 0.2, 0.2, 0.3),
    warm_up: Annotated[float, Least(0)] = 0.5,
) -> Supernet:
    """The table with its relevances; see `Supernet`."""
    return Supernet(schema, dim, shares, warm_up)


def derive(given: Evidence) -> Allocation:
    """The largest cells, with their relevance, within the limit: one threshold for all fields."""
    return keep_most_important("autosrh", given, given.found["importance"], given.limit)


def build(schema: Schema, dim: int, allocation: Allocation) -> FieldEmbedding:
    """What is left, trained with the mask fixed."""
    if not allocation.settings:
        return MixedTables(schema, allocation.dims, dim)
    return Masked(schema, dim, allocation)
