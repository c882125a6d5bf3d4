"""Wide & Deep. Cheng et al. 2016, "Wide & Deep Learning for Recommender Systems", eq. 3."""

from collections.abc import Sequence

from torch import Tensor, nn

from pipeline.data.schema import Schema
from pipeline.embeddings.batch import Occurrences
from pipeline.models.factored import Vectors
from pipeline.models.layers import MLP, FirstOrder
from pipeline.workflow.validation import Count, Fraction


class Backbone(nn.Module):
    """y = first-order weights + MLP of the concatenated field vectors.

    NOTE[DIFF]: the wide part has no crossed features, as in AutoDim's experiments.

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
        return self.first_order(occ) + self.mlp(embedded)
