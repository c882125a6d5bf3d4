"""LightGCN. He et al. 2020, LightGCN: Simplifying and Powering Graph Convolution Network for Recommendation, SIGIR."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from pipeline.data.schema import Schema
from pipeline.models.graph import Graph
from pipeline.workflow.validation import Count


class Backbone(nn.Module):
    """The mean of the vectors before, and after each of, K multiplications by the normalised adjacency (eq. 7 and 8).

    Args:
        schema: of the fields that identify users and items.
        dim: D.
        keys: these fields.
        layers: K.
    """

    graph = True

    def __init__(self, schema: Schema, dim: int, keys: Mapping[str, str], *, layers: Count = 3) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, vectors: Tensor, graph: Graph) -> Tensor:
        total = vectors
        for _ in range(self.layers):
            vectors = graph.adjacent(vectors)
            total = total + vectors
        return total / (self.layers + 1)
