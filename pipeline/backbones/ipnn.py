"""IPNN. Qu et al. 2016, "Product-based Neural Networks for User Response Prediction"."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.data.schema import Schema
from pipeline.embeddings.batch import Occurrences
from pipeline.models.layers import MLP, inner_products
from pipeline.workflow.validation import Count, Fraction


class Backbone(nn.Module):
    """y = MLP of the concatenated field vectors and of the inner products of all pairs, without first-order weights.

    NOTE[DIFF]: the paper's first layer takes the whole matrix of inner products and factorises its weights for speed.
    Here, as in the authors' later code, every pair enters once, with its own weight.

    Args:
        schema: F fields.
        dim: D.
        hidden, dropout: of the MLP.
    """

    def __init__(
        self, schema: Schema, dim: int, *, hidden: Sequence[Count] = (128, 128), dropout: Fraction = 0.2
    ) -> None:
        super().__init__()
        fields = len(schema)
        self.mlp = MLP(fields * dim + fields * (fields - 1) // 2, hidden, dropout)

    def forward(self, occ: Occurrences, embedded: Tensor) -> Tensor:
        """Occurrences, embedded (B, F, D) -> logits (B,)."""
        return self.mlp(torch.cat([embedded.flatten(1), inner_products(embedded)], 1))
