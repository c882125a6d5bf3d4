"""DeepFM. Guo et al. 2017, "DeepFM: A Factorization-Machine based Neural Network for CTR Prediction"."""

from collections.abc import Sequence

from torch import Tensor, nn

from pipeline.data.schema import Schema
from pipeline.embeddings.batch import Occurrences
from pipeline.models.factored import Factored
from pipeline.models.layers import MLP, FirstOrder, second_order


class Backbone(nn.Module):
    """y = FM + MLP, both on the same field vectors (eq. 1)."""

    factored = True  # takes field vectors that are not multiplied out

    def __init__(self, schema: Schema, dim: int, *, hidden: Sequence[int] = (128, 128), dropout: float = 0.2) -> None:
        super().__init__()
        self.first_order = FirstOrder(schema)
        self.mlp = MLP(len(schema) * dim, hidden, dropout)

    def forward(self, occ: Occurrences, embedded: Tensor | Factored) -> Tensor:
        """Occurrences, embedded (B, F, D) -> logits (B,)."""
        return self.first_order(occ) + second_order(embedded) + self.mlp(embedded)
