"""A linear low-pass filter on the graph: GTN without its clip, see `pipeline.backbones.gtn`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from pipeline.data.schema import Schema
from pipeline.models.graph import Graph
from pipeline.workflow.validation import Count, Fraction


class Backbone(nn.Module):
    """(I - beta L)^K times the vectors, where L is the Laplacian of `Graph.laplacian`.

    Args:
        schema: of the fields that identify users and items.
        dim: D.
        keys: these fields.
        layers: K.
        beta: the step, at most 1/2: the largest eigenvalue of L is at most 2.
        dropout: of the result.
    """

    graph = True

    def __init__(
        self,
        schema: Schema,
        dim: int,
        keys: Mapping[str, str],
        *,
        layers: Count = 3,
        beta: Annotated[float, Field(gt=0, le=0.5)] = 0.5,
        dropout: Fraction = 0.1,
    ) -> None:
        super().__init__()
        self.layers, self.beta = layers, beta
        self.dropout = nn.Dropout(dropout)

    def forward(self, vectors: Tensor, graph: Graph) -> Tensor:
        for _ in range(self.layers):
            vectors = vectors - self.beta * graph.laplacian(vectors)
        return self.dropout(vectors)  # type: ignore[no-any-return]
