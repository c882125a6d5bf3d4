"""AutoInt. Song et al. 2019, "AutoInt: Automatic Feature Interaction Learning via Self-Attentive Neural Networks"."""

from torch import Tensor, nn

from pipeline.data.schema import Schema
from pipeline.embeddings.batch import Occurrences
from pipeline.models.dense import Dense
from pipeline.workflow.validation import Count, Layers


class Interacting(nn.Module):
    """Multi-head self-attention over the fields with a residual (eq. 5 to 8): (B, F, inputs) -> (B, F, heads * dim)."""

    def __init__(self, inputs: int, heads: int, dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.residual = (Dense(inputs, heads * dim, bias=False) for _ in range(4))
        for layer in (self.query, self.key, self.value, self.residual):
            nn.init.xavier_uniform_(layer.weight)  # torch's default shrinks vectors layer by layer and learns slower

    def forward(self, vectors: Tensor) -> Tensor:
        # (B, heads, F, dim) each. One product for all three is slower, because its parts are not contiguous.
        query, key, value = (
            layer(vectors).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, scale=1.0)  # eq. 5 does not scale
        return (mixed.transpose(1, 2).flatten(2) + self.residual(vectors)).relu()


class Backbone(nn.Module):
    """y = linear in the field vectors of the last interacting layer (eq. 9), without the MLP of AutoInt+.

    Args:
        schema: F fields.
        dim: D.
        layers: number of interacting layers.
        heads: number of heads of each layer.
        attention_dim: dimension of a head, d' in the paper; a layer outputs vectors of heads * attention_dim numbers.
    """

    def __init__(
        self,
        schema: Schema,
        dim: int,
        *,
        layers: Layers = 3,
        heads: Count = 2,
        attention_dim: Count = 32,
    ) -> None:
        super().__init__()
        width = heads * attention_dim
        inputs = [dim] + [width] * (layers - 1)
        self.interacting = nn.Sequential(*(Interacting(numbers, heads, attention_dim) for numbers in inputs))
        self.output = Dense(len(schema) * width, 1)

    def forward(self, occ: Occurrences, embedded: Tensor) -> Tensor:
        """Occurrences, embedded (B, F, D) -> logits (B,)."""
        return self.output(self.interacting(embedded).flatten(1)).flatten()
