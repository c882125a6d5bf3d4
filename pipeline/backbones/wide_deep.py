"""Wide & Deep. Cheng et al. 2016, "Wide & Deep Learning for Recommender Systems", eq. 3."""

from collections.abc import Sequence

from torch import Tensor, nn

from pipeline.data.schema import Schema
from pipeline.embeddings.batch import Occurrences
from pipeline.models.factored import Factored
from pipeline.models.layers import MLP, FirstOrder


class Backbone(nn.Module):
    """y = first-order weights + MLP of the concatenated field vectors.

    The wide part takes the single features, as in AutoDim's experiments; no crossed features.
    """

    factored = True  # takes field vectors that are not multiplied out

    def __init__(self, schema: Schema, dim: int, *, hidden: Sequence[int] = (128, 128), dropout: float = 0.2) -> None:
        super().__init__()
        self.first_order = FirstOrder(schema)
        self.mlp = MLP(len(schema) * dim, hidden, dropout)

    def forward(self, occ: Occurrences, embedded: Tensor | Factored) -> Tensor:
        """Occurrences, embedded (B, F, D) -> logits (B,)."""
        return self.first_order(occ) + self.mlp(embedded)
