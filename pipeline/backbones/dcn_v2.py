"""DCN V2. Wang et al. 2021, "DCN V2: Improved Deep & Cross Network ... for Web-scale Learning to Rank Systems"."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from pipeline.data.schema import Schema
from pipeline.embeddings.batch import Occurrences
from pipeline.models.dense import Dense
from pipeline.models.layers import MLP
from pipeline.workflow.validation import Count, Fraction, Layers


class Backbone(nn.Module):
    """Cross layers x' = x0 * (W x + b) + x (eq. 1) and an MLP; x0 is the concatenation of the field vectors.

    NOTE[DIFF]: a W of low rank is one product of two matrices instead of the paper's gated mixture of several.

    Args:
        schema: F fields.
        dim: D.
        structure: "stacked": y = MLP of the last cross layer. "parallel": y = linear in the last cross layer + MLP of
            x0.
        layers: number of cross layers.
        rank: of W, which then has 2 F D rank numbers; None for a full W of (F D)^2 numbers.
        hidden, dropout: of the MLP.
    """

    def __init__(
        self,
        schema: Schema,
        dim: int,
        *,
        structure: Literal["parallel", "stacked"] = "stacked",
        layers: Layers = 2,
        rank: Count | None = None,
        hidden: Sequence[Count] = (128, 128),
        dropout: Fraction = 0.2,
    ) -> None:
        super().__init__()
        width = len(schema) * dim
        self.crosses = nn.ModuleList(
            Dense(width, width) if rank is None else nn.Sequential(Dense(width, rank, bias=False), Dense(rank, width))
            for _ in range(layers)
        )
        self.crossed = Dense(width, 1, bias=False) if structure == "parallel" else None  # the MLP has a bias
        self.mlp = MLP(width, hidden, dropout)

    def forward(self, occ: Occurrences, embedded: Tensor) -> Tensor:
        """Occurrences, embedded (B, F, D) -> logits (B,)."""
        first = crossed = embedded.flatten(1)
        for cross in self.crosses:
            crossed = first * cross(crossed) + crossed
        if self.crossed is None:
            return self.mlp(crossed)
        return self.crossed(crossed).flatten() + self.mlp(first)
