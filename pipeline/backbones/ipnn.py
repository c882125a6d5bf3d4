"""IPNN. Qu et al. 2016, "Product-based Neural Networks for User Response Prediction"."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.data.schema import Schema
from pipeline.embeddings.batch import Occurrences
from pipeline.models.layers import MLP, inner_products


class Backbone(nn.Module):
    """y = MLP of the field vectors side by side and of the inner products of all pairs. It has no first order.

    NOTE[DIFF]: the paper's first layer takes the matrix of all inner products, and factorises its weights on them for
    speed. Here, as in the authors' later code, every pair has a weight of its own and enters once.
    """

    def __init__(self, schema: Schema, dim: int, *, hidden: Sequence[int] = (128, 128), dropout: float = 0.2) -> None:
        super().__init__()
        fields = len(schema)
        self.mlp = MLP(fields * dim + fields * (fields - 1) // 2, hidden, dropout)

    def forward(self, occ: Occurrences, embedded: Tensor) -> Tensor:
        """Occurrences, embedded (B, F, D) -> logits (B,)."""
        return self.mlp(torch.cat([embedded.flatten(1), inner_products(embedded)], 1))
