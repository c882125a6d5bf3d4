"""What each field, or each of its dimensions, is worth to a trained model: the gradient of a gate in front of it."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from pipeline.data.schema import Schema
from pipeline.embeddings.batch import Occurrences, spread
from pipeline.embeddings.contract import FieldEmbedding, Passes
from pipeline.embeddings.table import Table

Over = Literal["batch", "row"]


class Gated(FieldEmbedding):
    """A full table, and gates of 1 behind it, which training leaves alone. Qu et al. 2022 (SSEDS).

    After the training one pass over ``arch`` gives the gradient of the loss in the gates: how much the loss changes,
    to first order, when one is closed.

    Args:
        columns: gates of a field: D, one for each of its dimensions, or 1.
        over: of what absolute gradients are taken, and averaged: of batches, in which rows of opposite signs cancel,
            or of single rows.
    """

    def __init__(self, schema: Schema, dim: int, columns: int, over: Over) -> None:
        super().__init__()
        self.dim, self.over = dim, over
        self.table = Table(schema.num_rows, dim)
        self.saliency = np.zeros((len(schema), columns))
        self._measuring = False
        self._gates: Tensor | None = None

    def forward(self, occ: Occurrences) -> Tensor:
        """Occurrences -> (B, F, D)."""
        embedded = spread(self.table(occ.rows), occ)
        if not self._measuring:
            return embedded
        shape = (*occ.shape, self.saliency.shape[1])
        self._gates = torch.ones(shape, device=embedded.device, requires_grad=True)  # of each row, all equal
        return embedded * self._gates

    def conclude(self, passes: Passes) -> None:
        self._measuring = True
        total, count = torch.zeros(self.saliency.shape, dtype=torch.float64), 0
        for logits, labels in passes():
            assert self._gates is not None
            (gradient,) = torch.autograd.grad(binary_cross_entropy_with_logits(logits, labels), [self._gates])
            absolute = gradient.sum(0).abs() if self.over == "batch" else gradient.abs().sum(0)
            total += absolute.cpu()
            count += 1
        self.saliency = (total / count).numpy()
        self._measuring, self._gates = False, None

    def found(self) -> dict[str, np.ndarray]:
        """Mean absolute gradient of each gate: (F, columns) float64."""
        return {"saliency": self.saliency}

    def packed(self) -> dict[str, Tensor]:
        return {"table": self.table.weight.detach()}
