"""DeepFM. Guo et al. 2017, "DeepFM: A Factorization-Machine based Neural Network for CTR Prediction"."""

from collections.abc import Sequence

from torch import Tensor, nn

from pipeline.data.schema import Schema
from pipeline.embeddings.batch import Occurrences
from pipeline.models.factored import Vectors
from pipeline.models.layers import MLP, FirstOrder, second_order
from pipeline.workflow.validation import Count, Fraction


class Backbone(nn.Module):
    """y = FM + MLP, both on the same field vectors (eq. 1).

    Args:
        schema: F fields.
        dim: D.
        hidden, dropout: of the MLP.
    """

    factored = True  # accepts `Vectors` in place of the field vectors

    def __init__(
        self, schema: Schema, dim: int, *, hidden: Sequence[Count] = (128, 128), dropout: Fraction = 0.2
    ) -> None:
        super().__init__()
        self.first_order = FirstOrder(schema)
        self.mlp = MLP(len(schema) * dim, hidden, dropout)

    def forward(self, occ: Occurrences, embedded: Tensor | Vectors) -> Tensor:
        """Occurrences, embedded (B, F, D) -> logits (B,)."""
        return self.first_order(occ) + second_order(embedded) + self.mlp(embedded)
