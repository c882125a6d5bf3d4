"""Factorization machine. Rendle 2010, "Factorization Machines", eq. 1."""

from torch import Tensor, nn

from pipeline.data.schema import Schema
from pipeline.embeddings.batch import Occurrences
from pipeline.models.factored import Vectors
from pipeline.models.layers import FirstOrder, second_order


class Backbone(nn.Module):
    """y = bias + sum of first-order weights + sum of inner products of all pairs of fields.

    Args:
        schema: F fields.
        dim: D; FM has no weights that depend on it.
    """

    factored = True  # accepts `Vectors` in place of the field vectors

    def __init__(self, schema: Schema, dim: int) -> None:
        super().__init__()
        self.first_order = FirstOrder(schema)

    def forward(self, occ: Occurrences, embedded: Tensor | Vectors) -> Tensor:
        """Occurrences, embedded (B, F, D) -> logits (B,)."""
        return self.first_order(occ) + second_order(embedded)
