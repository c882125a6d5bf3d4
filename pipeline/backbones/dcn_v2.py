"""DCN V2. Wang et al. 2021, "DCN V2: Improved Deep & Cross Network ... for Web-scale Learning to Rank Systems"."""

from collections.abc import Sequence
from typing import Annotated, Literal

from torch import Tensor, nn

from pipeline.data.schema import Schema
from pipeline.embeddings.batch import Occurrences
from pipeline.models.layers import MLP
from pipeline.workflow.plug import Least


class Backbone(nn.Module):
    """Cross layers x' = x0 * (W x + b) + x (eq. 1) on x0, the field vectors side by side, and an MLP.

    NOTE[DIFF]: a low rank is one product of two matrices, without the paper's gated mixture of several.

    Args:
        structure: "stacked": y = MLP of what the cross layers give. "parallel": y = linear in that + MLP of x0.
        layers: cross layers on each other.
        rank: of W, which then has 2 F D rank numbers; None for a full one, with (F D)^2 in every layer.
        hidden, dropout: of the MLP.
    """

    def __init__(
        self,
        schema: Schema,
        dim: int,
        *,
        structure: Literal["parallel", "stacked"] = "stacked",
        layers: Annotated[int, Least(1)] = 2,
        rank: Annotated[int, Least(1)] | None = None,
        hidden: Sequence[int] = (128, 128),
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        width = len(schema) * dim
        self.crosses = nn.ModuleList(
            nn.Linear(width, width)
            if rank is None
            else nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, width))
            for _ in range(layers)
        )
        self.crossed = nn.Linear(width, 1, bias=False) if structure == "parallel" else None  # the MLP has a bias
        self.mlp = MLP(width, hidden, dropout)

    def forward(self, occ: Occurrences, embedded: Tensor) -> Tensor:
        """Occurrences, embedded (B, F, D) -> logits (B,)."""
        first = crossed = embedded.flatten(1)
        for cross in self.crosses:
            crossed = first * cross(crossed) + crossed
        if self.crossed is None:
            return self.mlp(crossed)
        return self.crossed(crossed).flatten() + self.mlp(first)
