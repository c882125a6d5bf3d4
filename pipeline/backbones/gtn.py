"""GTN. Fan et al. 2022, "Graph Trend Filtering Networks for Recommendation", SIGIR, arXiv 2108.05552."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.data.schema import Schema
from pipeline.models.graph import Graph
from pipeline.models.trend import Trend
from pipeline.workflow.validation import Count, Fraction


class Backbone(nn.Module):
    """K steps towards the minimum over X of |X - V|^2 / 2 + threshold * |Delta X|_1, from the vectors V.

    Delta is the normalised incidence matrix of the graph, see `Graph.differences`. An edge whose ends differ much is
    pulled together by no more than the threshold, so that a wrong edge does less harm. The steps are those of a
    projected gradient on the dual, Z, which is clipped to +-threshold:

        Z <- clip(Z + beta Delta (V - Delta^T Z), threshold),  X <- V - Delta^T Z

    As long as nothing is clipped, X is that of `pipeline.backbones.linear_filter`.

    NOTE[DIFF]: the paper derives steps with a second step size gamma, which is 1 in its code; they are then these.
    NOTE[DIFF]: in the code, dropout stands within the loop, where only the one after the last step has an effect.

    Args:
        schema: of the fields that identify users and items.
        dim: D.
        keys: these fields.
        layers: K.
        beta: the step, at most 1/2.
        threshold: lambda of the paper.
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
        threshold: Annotated[float, Field(gt=0)] = 4.0,
        dropout: Fraction = 0.1,
    ) -> None:
        super().__init__()
        self.layers, self.beta, self.threshold = layers, beta, threshold
        self.dropout = nn.Dropout(dropout)
        self._trend: Trend | None = None  # the same steps for training
        self.seen: dict[str, float] = {}  # see `watched`

    def forward(self, vectors: Tensor, graph: Graph) -> Tensor:
        if self.training:
            return self.dropout(self._trend_of(graph, vectors)(vectors))  # type: ignore[no-any-return]
        filtered, unclipped = self._steps(vectors, graph)
        size = unclipped.detach().abs()
        self.seen = {"clipped": float((size > self.threshold).double().mean()), "largest_dual": float(size.max())}
        return filtered

    def strain(self, vectors: Tensor, graph: Graph) -> Tensor:
        """(V, D) -> (E,): for each pair of the graph, the mean size of the numbers that the last step clips."""
        return self._steps(vectors, graph)[1].abs().mean(1)

    def _steps(self, vectors: Tensor, graph: Graph) -> tuple[Tensor, Tensor]:
        """X (V, D), and Z (E, D) of the last step before it is clipped."""
        dual = torch.zeros(len(graph.users), vectors.shape[1], dtype=vectors.dtype, device=vectors.device)
        filtered = vectors
        for _ in range(self.layers):
            unclipped = dual + self.beta * graph.differences(filtered)
            dual = unclipped.clamp(-self.threshold, self.threshold)
            filtered = vectors - graph.gather(dual)
        return filtered, unclipped

    def _trend_of(self, graph: Graph, like: Tensor) -> Trend:
        if self._trend is None or self._trend.graph is not graph or not self._trend.suits(like):
            self._trend = Trend(graph, like, self.layers, self.beta, self.threshold)
        return self._trend

    def watched(self) -> dict[str, float]:
        """Of the last pass in evaluation mode: the share of the dual's numbers that the last step clips, and the
        largest of them before it. Nothing before a pass."""
        return self.seen
