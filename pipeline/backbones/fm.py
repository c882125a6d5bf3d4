"""Factorization machine. Rendle 2010, "Factorization Machines", eq. 1."""

from torch import Tensor, nn

from pipeline.layers import FirstOrder, second_order
from pipeline.schema import Schema


class Backbone(nn.Module):
    """y = bias + sum of first-order weights + sum of inner products of all pairs of fields."""

    def __init__(self, schema: Schema, dim: int) -> None:
        super().__init__()
        self.first_order = FirstOrder(schema)

    def forward(self, ids: Tensor, embedded: Tensor) -> Tensor:
        """ids (B, S), embedded (B, F, D) -> logits (B,)."""
        return self.first_order(ids) + second_order(embedded)
