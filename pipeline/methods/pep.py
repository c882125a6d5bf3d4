"""PEP, plug-in embedding pruning. Liu et al. 2021, "Learnable Embedding Sizes for Recommender Systems", ICLR."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.evidence import Evidence, Problem
from pipeline.data.schema import Schema
from pipeline.embeddings.batch import Occurrences
from pipeline.embeddings.contract import FieldEmbedding, Findings
from pipeline.embeddings.kept_cells import Masked, keep, keep_most_important
from pipeline.embeddings.table import Table
from pipeline.workflow.validation import Rate

Thresholds = Literal["global", "dim", "field", "field_dim", "row", "cell"]


class ThresholdedCells(FieldEmbedding):
    """A full table E whose numbers are shrunk by learned thresholds, so that small numbers become 0.

    E' = sign(E) ReLU(|E| - sigmoid(s)), computed only for the rows of a batch.

    Args:
        schema: F fields.
        dim: D.
        thresholds: the numbers that share an s: all in the table ("global"); those of a dimension ("dim"), of a field
            ("field"), of a dimension within a field ("field_dim") or of a row ("row"); or every number has its own
            ("cell").
        init: of s.
        decay: L2 coefficient of s. It pulls s up to 0, a threshold of 1/2, against the loss. With "row" and "cell", it
            acts only on the rows of the batch.

    NOTE[DIFF]: the paper starts at s = -15 to -150, a threshold of at most 3e-7, whose gradient is negligible compared
    to Adam's eps. Then only the weight decay moves s, by one learning rate per step, over many thousand steps. Here the
    threshold starts at a quarter of the tables' standard deviation, from which it can rise far enough to prune within a
    thousand steps. The decay has the paper's value but acts only on s; the decay of the tables is a setting of the run.
    """

    def __init__(self, schema: Schema, dim: int, thresholds: Thresholds, init: float, decay: float) -> None:
        super().__init__()
        self.dim, self.decay = dim, decay
        self.table = Table(schema.num_rows, dim)  # drawn first, as in `Masked`: equal seeds give equal tables
        self.by_row = thresholds in ("row", "cell")
        columns = dim if thresholds in ("dim", "field_dim", "cell") else 1
        if self.by_row:
            self.s: nn.Module | nn.Parameter = Table(schema.num_rows, columns, sd=0.0)
            nn.init.constant_(self.s.weight, init)
        else:
            groups = len(schema) if thresholds in ("field", "field_dim") else 1
            self.s = nn.Parameter(torch.full((groups, columns), init))
        group = np.repeat(np.arange(len(schema)), schema.cardinalities) * (thresholds in ("field", "field_dim"))
        self.register_buffer("group", torch.from_numpy(group), persistent=False)  # (V,): the row of s for each row

    group: Tensor

    def vectors(self, occ: Occurrences) -> Tensor:
        values: Tensor = self.table(occ.rows)
        return values.sign() * torch.relu(values.abs() - self._thresholds(occ.rows))

    def _thresholds(self, rows: Tensor) -> Tensor:
        """Rows (U,) -> thresholds (U, D) or (U, 1)."""
        if isinstance(self.s, Table):
            self.touched = self.s(rows)
            return self.touched.sigmoid()
        assert isinstance(self.s, nn.Parameter)
        return self.s.index_select(0, self.group.index_select(0, rows)).sigmoid()

    def objective(self, loss: Tensor, part: str) -> Tensor:
        if not self.decay:
            return loss
        return loss + self.decay / 2 * (self.touched if self.by_row else self.s).square().sum()  # type: ignore[operator]

    def packed(self) -> dict[str, Tensor]:
        s = self.s.weight if isinstance(self.s, Table) else self.s
        assert isinstance(s, Tensor)
        return {"table": self.table.weight.detach(), "threshold": s.detach()}

    def findings(self) -> Findings:
        return Findings(arrays=self._margin)

    @torch.no_grad()
    def _margin(self) -> dict[str, np.ndarray]:
        """``margin``: (V, D) float16, the distance of each cell above its threshold."""
        every = torch.arange(len(self.table.weight), device=self.group.device)
        margin = self.table.weight.abs() - self._thresholds(every)
        return {"margin": margin.half().cpu().numpy()}


def find(
    problem: Problem, *, thresholds: Thresholds = "field_dim", init: float = -6.0, decay: Rate = 0.0001
) -> ThresholdedCells:
    """The table and its thresholds, both trained on the training loss, as in the paper.

    Args:
        thresholds, init, decay: of `ThresholdedCells`.
    """
    return ThresholdedCells(problem.schema, problem.dim, thresholds, init, decay)


def derive(evidence: Evidence) -> Allocation:
    """The cells above their thresholds; under a budget, as many as it allows, ranked by their margin.

    NOTE[DIFF]: the paper keeps the mask of the first step that leaves no more cells than wanted. That rule counts cells
    instead of bytes, and a run has masks only for the sizes that it passes. The ranking by margin gives a mask for
    every budget.
    NOTE[DIFF]: the paper trains the kept cells from the initial numbers of the search. So does this project if both
    have the same seed; otherwise the numbers differ.

    Raises:
        ValueError: if there is no budget, and no cell is above its threshold.
        TooFewBytes: if the budget is too small for one cell.
    """
    margin = evidence.arrays["margin"]
    if evidence.budget is not None:
        return keep_most_important(evidence, margin, evidence.budget)
    if not (margin > 0).any():
        raise ValueError("pep: no cell is above its threshold; lower method.options.pep.init, or train fewer steps")
    return keep(evidence, margin > 0)


build = Masked  # the kept cells, trained with a fixed mask
