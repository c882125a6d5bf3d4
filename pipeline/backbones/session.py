"""A behaviour model of sessions: what a user in a state does with a recommended item."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.data.schema import Schema
from pipeline.embeddings.batch import Occurrences
from pipeline.models.layers import MLP
from pipeline.workflow.validation import Count, Fraction

ITEM = "item"  # the field that is recommended; the others are the state


class Backbone(nn.Module):
    """Logits of skip, click, order and leave: an MLP of the field vectors e_f and the products e_item * e_f, f != item.

    A state alone says how patient its user is. Whether an item suits it is a matter of both, and the products give this
    to the first layer; they are left out if the item is not among the fields. There are no first-order weights.

    NOTE[DIFF]: DeepChain's paper does not say how its behaviour model is built.

    Args:
        schema: F fields.
        dim: D.
        hidden, dropout: of the MLP.
    """

    outputs = 4

    def __init__(
        self, schema: Schema, dim: int, *, hidden: Sequence[Count] = (128, 128), dropout: Fraction = 0.1
    ) -> None:
        super().__init__()
        self.item = schema.names.index(ITEM) if ITEM in schema.names else None
        self.state = [field for field in range(len(schema)) if field != self.item]
        products = 0 if self.item is None else len(self.state)
        self.mlp = MLP((len(schema) + products) * dim, hidden, dropout, self.outputs)

    def forward(self, occ: Occurrences, embedded: Tensor) -> Tensor:
        """Occurrences, embedded (B, F, D) -> logits (B, 4)."""
        if self.item is None:
            return self.mlp(embedded)
        products = embedded[:, self.state] * embedded[:, self.item, None]
        return self.mlp(torch.cat([embedded, products], 1))
