"""The importance of each field, or of each of its dimensions, to a trained model: the gradient of a gate."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.evidence import Evidence
from pipeline.allocation.knapsack import within_budget
from pipeline.data.schema import Schema
from pipeline.embeddings.batch import Occurrences
from pipeline.embeddings.contract import FieldEmbedding, Findings, Judge
from pipeline.embeddings.table import Table

Over = Literal["batch", "row"]


class Gated(FieldEmbedding):
    """A full table whose output is multiplied by gates of 1 after training. Qu et al. 2022 (SSEDS).

    One pass over ``arch`` gives the gradient of the loss with respect to each gate: to first order, the change of the
    loss if the gate is closed.

    Args:
        schema: F fields.
        dim: D.
        columns: gates per field: D, one for each dimension; or 1.
        over: "batch": the mean over batches of the absolute value of a batch's gradient, in which rows of opposite
            signs cancel. "row": the same for the gradients of single rows, whose absolute values are added up in a
            batch.
    """

    def __init__(self, schema: Schema, dim: int, columns: int, over: Over) -> None:
        super().__init__()
        self.dim, self.over = dim, over
        self.table = Table(schema.num_rows, dim)
        self.saliency = np.zeros((len(schema), columns))
        self._measuring = False
        self._gates: Tensor | None = None
        self._occ: Occurrences | None = None  # of the batch of these gates

    def vectors(self, occ: Occurrences) -> Tensor:
        vectors: Tensor = self.table(occ.rows)
        return vectors

    def forward(self, occ: Occurrences) -> Tensor:
        """Occurrences -> (B, F, D). During the pass over ``arch``, each row of the batch has gates of its own."""
        embedded = super().forward(occ)
        if not self._measuring:
            return embedded
        shape = (*occ.shape, self.saliency.shape[1])
        self._occ = occ
        self._gates = torch.ones(shape, device=embedded.device, requires_grad=True)
        return embedded * self._gates

    def conclude(self, judge: Judge) -> None:
        self._measuring = True
        total, count = torch.zeros(self.saliency.shape, dtype=torch.float64), 0
        for loss in judge.losses():
            assert self._gates is not None
            (gradient,) = torch.autograd.grad(loss, [self._gates])
            assert self._occ is not None
            absolute = self._occ.sums(gradient).abs() if self.over == "batch" else self._occ.sums(gradient.abs())
            total += absolute.cpu()
            count += 1
        self.saliency = (total / count).numpy()
        self._measuring, self._gates, self._occ = False, None, None

    def findings(self) -> Findings:
        """``saliency``: (F, columns) float64 mean absolute gradient of each gate."""
        return Findings(arrays=lambda: {"saliency": self.saliency})

    def packed(self) -> dict[str, Tensor]:
        return {"table": self.table.weight.detach()}


def most_salient(evidence: Evidence, scores: np.ndarray) -> Allocation:
    """The choice with the largest sum of scores within the evidence's limit; it keeps at least one field.

    Args:
        evidence: prices and limit.
        scores: (F, N) of the candidates.
    """
    scaled = scores / max(scores.max(), np.finfo(float).tiny)
    return evidence.chosen(within_budget(scaled, evidence.prices, evidence.limit, drop_all=False))
