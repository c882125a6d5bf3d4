"""PEP, plug-in embedding pruning. Liu et al. 2021, "Learnable Embedding Sizes for Recommender Systems", ICLR."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.evidence import Evidence
from pipeline.data.schema import Schema
from pipeline.embeddings.batch import Occurrences, spread
from pipeline.embeddings.contract import FieldEmbedding
from pipeline.embeddings.kept_cells import Masked, allocation_of, keep_most_important
from pipeline.embeddings.mixed import MixedTables
from pipeline.embeddings.table import Table
from pipeline.workflow.plug import Least

Thresholds = Literal["global", "dim", "field", "field_dim", "row", "cell"]


class Supernet(FieldEmbedding):
    """A full table E whose numbers are shrunk by learned thresholds, which sets the small ones to 0.

    E' = sign(E) ReLU(|E| - sigmoid(s)), of the rows that a batch touches alone.

    Args:
        thresholds: what numbers share an s: all of the table, those of a dimension, of a field, of a dimension in a
            field, of a row; or "cell": none.
        init: of s.
        decay: L2 coefficient of s, which draws it up to 0, a threshold of 1/2, against the loss; where rows have an s
            of their own, of those that a batch touches.

    NOTE[DIFF]: the paper starts at s = -15 to -150, a threshold of 3e-7 and less, whose gradient Adam's eps swallows;
    all that then moves it is the weight decay, by a learning rate a step and over many thousand of them. Here s starts
    where a thousand steps can take it to what prunes: a quarter of the tables' standard deviation. The decay is the
    paper's too, but of s alone; that of the tables is the run's own.
    """

    def __init__(self, schema: Schema, dim: int, thresholds: Thresholds, init: float, decay: float) -> None:
        super().__init__()
        self.dim, self.decay = dim, decay
        self.table = Table(schema.num_rows, dim)  # first, so that what is trained of equal seed starts the same
        self.by_row = thresholds in ("row", "cell")
        columns = dim if thresholds in ("dim", "field_dim", "cell") else 1
        if self.by_row:
            self.s: nn.Module | nn.Parameter = Table(schema.num_rows, columns, sd=0.0)
            nn.init.constant_(self.s.weight, init)
        else:
            groups = len(schema) if thresholds in ("field", "field_dim") else 1
            self.s = nn.Parameter(torch.full((groups, columns), init))
        group = np.repeat(np.arange(len(schema)), schema.cardinalities) * (thresholds in ("field", "field_dim"))
        self.register_buffer("group", torch.from_numpy(group), persistent=False)  # (V,): the row of s

    group: Tensor

    def forward(self, occ: Occurrences) -> Tensor:
        """Occurrences -> (B, F, D)."""
        values: Tensor = self.table(occ.rows)
        return spread(values.sign() * torch.relu(values.abs() - self._thresholds(occ.rows)), occ)

    def _thresholds(self, rows: Tensor) -> Tensor:
        """Row numbers (U,) -> (U, D) or (U, 1)."""
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

    @torch.no_grad()
    def found(self) -> dict[str, np.ndarray]:
        """How far each cell is above its threshold, (V, D) float16."""
        every = torch.arange(len(self.table.weight), device=self.group.device)
        margin = self.table.weight.abs() - self._thresholds(every)
        return {"margin": margin.half().cpu().numpy()}


def search(
    schema: Schema,
    dim: int,
    candidates: Sequence[Sequence[int]],
    prices: np.ndarray,
    *,
    thresholds: Thresholds = "field_dim",
    init: float = -6.0,
    decay: Annotated[float, Least(0)] = 0.0001,
) -> Supernet:
    """The table with its thresholds, all trained on the training loss, as in the paper; see `Supernet`."""
    return Supernet(schema, dim, thresholds, init, decay)


def derive(given: Evidence) -> Allocation:
    """The cells that are above their thresholds; under a budget, those that are the farthest above.

    NOTE[DIFF]: the paper keeps the mask as it is when, in training, as few are left as are wanted. That is a number of
    cells, not of bytes, and one run has a mask for every budget only if it reaches them all. Ranking by the margin
    gives every budget its mask.
    NOTE[DIFF]: the paper trains what is left from the initial numbers of the search. So does this where both have
    the same seed; with others the numbers are others.
    """
    margin = given.found["margin"]
    if given.budget is not None:
        return keep_most_important("pep", given, margin, given.budget)
    if not (margin > 0).any():
        raise ValueError("pep: no cell is above its threshold; lower method.options.pep.init, or train for less long")
    return allocation_of("pep", given, margin > 0)


def build(schema: Schema, dim: int, allocation: Allocation) -> FieldEmbedding:
    """What is left, trained with the mask fixed."""
    if not allocation.settings:
        return MixedTables(schema, allocation.dims, dim)
    return Masked(schema, dim, allocation)
