"""NFM. He & Chua 2017, "Neural Factorization Machines for Sparse Predictive Analytics"."""

from collections.abc import Sequence

from torch import Tensor, nn

from pipeline.data.schema import Schema
from pipeline.embeddings.batch import Occurrences
from pipeline.models.layers import MLP, BatchNorm, Dropout, FirstOrder, bi_interaction
from pipeline.workflow.validation import Count, Fraction


class Backbone(nn.Module):
    """y = first-order weights + MLP of the field vectors after bi-interaction pooling (eq. 7).

    BatchNorm and dropout follow the pooling as they follow every hidden layer (section 3.3).

    Args:
        schema: F fields.
        dim: D.
        hidden, dropout: of the MLP; ``dropout`` also follows the pooling.
    """

    def __init__(
        self, schema: Schema, dim: int, *, hidden: Sequence[Count] = (128, 128), dropout: Fraction = 0.2
    ) -> None:
        super().__init__()
        self.first_order = FirstOrder(schema)
        self.regularised = nn.Sequential(BatchNorm(dim), Dropout(dropout))
        self.mlp = MLP(dim, hidden, dropout)

    def forward(self, occ: Occurrences, embedded: Tensor) -> Tensor:
        """Occurrences, embedded (B, F, D) -> logits (B,)."""
        return self.first_order(occ) + self.mlp(self.regularised(bi_interaction(embedded)))
