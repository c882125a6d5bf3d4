"""AutoSrh. Kong et al. 2023, "AutoSrh: An Embedding Dimensionality Search Framework for Tabular Data Prediction".

An earlier form is Cheng et al. 2020, "Differentiable Neural Input Search for Recommender Systems".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.evidence import Evidence, Problem
from pipeline.data.schema import Schema
from pipeline.embeddings.batch import Occurrences
from pipeline.embeddings.contract import FieldEmbedding, Findings
from pipeline.embeddings.kept_cells import Masked, keep_most_important
from pipeline.embeddings.table import Table
from pipeline.workflow.validation import Fraction


class WeightedBlocks(FieldEmbedding):
    """A full table whose rows are multiplied by the relevances of their block: e' = e * alpha.

    A block is a range of a field's values, sorted by falling frequency. Relevances start at 1 and stay between 0 and 1.

    Args:
        schema: F fields.
        dim: D.
        shares: shares of a field's values in its blocks, most frequent first; they add up to 1.
        warm_up: share of the planned steps before the relevances are trained.

    NOTE[DIFF]: the paper divides a block's gradient by its mean absolute value and takes SGD steps. Here Adam trains
    the architecture, whose steps have equal lengths too.

    Raises:
        ValueError: if a share is not above 0, or if they do not add up to 1.
    """

    def __init__(self, schema: Schema, dim: int, shares: Sequence[float], warm_up: float) -> None:
        super().__init__()
        _check_shares(shares)
        self.dim, self.warm_up = dim, warm_up
        self.table = Table(schema.num_rows, dim)  # drawn first, as in `Masked`: equal seeds give equal tables
        self.alpha = nn.Parameter(torch.ones(len(schema) * len(shares), dim))
        self.register_buffer("block", torch.from_numpy(blocks(schema, shares)), persistent=False)  # (V,)
        self._warming = warm_up > 0

    block: Tensor

    def vectors(self, occ: Occurrences) -> Tensor:
        return self.table(occ.rows) * self.alpha.index_select(0, self.block.index_select(0, occ.rows))

    def arch_parameters(self) -> list[nn.Parameter]:
        return [self.alpha]

    @torch.no_grad()
    def before_step(self, step: int, planned: int) -> None:
        """Clamp the relevances, which the last step of the architecture may have moved out of range."""
        self.alpha.clamp_(0, 1)
        self._warming = step < math.ceil(self.warm_up * planned)

    def warming(self) -> bool:
        return self._warming

    @torch.no_grad()
    def findings(self) -> Findings:
        return Findings(watched={"alpha/mean": float(self.alpha.clamp(0, 1).mean())}, arrays=self._importance)

    @torch.no_grad()
    def _importance(self) -> dict[str, np.ndarray]:
        """``importance``: (V, D) float16, absolute value of each cell times its relevance."""
        relevant = self.table.weight * self.alpha.clamp(0, 1).index_select(0, self.block)
        return {"importance": relevant.abs_().half().cpu().numpy()}

    def packed(self) -> dict[str, Tensor]:
        return {"table": self.table.weight.detach(), "alpha": self.alpha.detach()}


def blocks(schema: Schema, shares: Sequence[float]) -> np.ndarray:
    """(V,) int64 block of each row; blocks are numbered field by field, the most frequent values first.

    Args:
        schema: F fields with V values in all.
        shares: of `WeightedBlocks`.
    """
    ends = np.cumsum(shares)[:-1]
    return np.concatenate(
        [
            f * len(shares) + np.searchsorted(ends, (np.arange(n) + 0.5) / n)
            for f, n in enumerate(schema.cardinalities.tolist())
        ]
    )


def check(dim: int, options: Mapping[str, Any]) -> None:
    if "shares" in options:
        _check_shares(options["shares"])


def _check_shares(shares: Sequence[float]) -> None:
    if not shares or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"shares of the values must be above 0 and add up to 1, got {list(shares)}")


def find(
    problem: Problem, *, shares: Sequence[float] = (0.1, 0.2, 0.2, 0.2, 0.3), warm_up: Fraction = 0.5
) -> WeightedBlocks:
    """The table and its relevances.

    Args:
        shares, warm_up: of `WeightedBlocks`.
    """
    return WeightedBlocks(problem.schema, problem.dim, shares, warm_up)


def derive(evidence: Evidence) -> Allocation:
    """The cells with the largest importance within the limit; one threshold holds for all fields."""
    return keep_most_important(evidence, evidence.arrays["importance"], evidence.limit)


build = Masked  # the kept cells, trained with a fixed mask
