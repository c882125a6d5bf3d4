"""The steps of graph trend filtering (Fan et al. 2022) for training, block of edges by block of edges.

The dual has E rows of D numbers, far more than a cache holds, and every operation on all of it reads and writes them
again. Here an edge's numbers are computed, clipped and added to its ends while they are in the cache. On a GPU there is
one block.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from pipeline.models.graph import Graph

_zero_where_clipped = torch.ops.aten.hardtanh_backward.grad_input
BLOCK = 4096  # edges; 1 MiB of numbers at D = 64 in float32


class _Block(NamedTuple):
    """Some edges; row e of ``ends`` and ``signs`` is for one end of one edge, in the order of the nodes.

    Args:
        rows: their places in the dual.
        users, items: (e,) nodes of the edges.
        nodes: (n,) the distinct ones among them.
        edges: (2 e,) the edge, counted in the block, of each end.
        signs: (2 e,) 1 for users, -1 for items.
        starts: (n,) where the ends of each node begin.
    """

    rows: slice
    users: Tensor
    items: Tensor
    nodes: Tensor
    edges: Tensor
    signs: Tensor
    starts: Tensor


class Trend:
    """X after K steps from vectors V, see `pipeline.backbones.gtn.Backbone`, with a backward pass of its own.

    Args:
        graph: of E pairs.
        like: a tensor of the type and on the device of V.
        layers, beta, threshold: K, beta and lambda.
    """

    def __init__(self, graph: Graph, like: Tensor, layers: int, beta: float, threshold: float) -> None:
        self.graph, self.layers, self.beta, self.threshold = graph, layers, beta, threshold
        self.scale = (graph.degrees + 1).to(like.dtype).rsqrt()[:, None]
        order = torch.argsort(graph.users, stable=True)
        users, items = graph.users[order], graph.items[order]
        number, size = len(users), BLOCK if like.device.type == "cpu" else max(1, len(users))
        self.blocks = [
            _block(slice(a, min(number, a + size)), users[a : a + size], items[a : a + size], like)
            for a in range(0, number, size)
        ]
        self._unused: list[Tensor] = []  # duals of finished steps; fresh memory would cost as much as the arithmetic

    def __deepcopy__(self, memo: dict[int, Any]) -> Trend:
        return self  # it holds no weights

    def suits(self, like: Tensor) -> bool:
        """Whether it was made for tensors of this type on this device."""
        return self.scale.dtype == like.dtype and self.scale.device == like.device

    def __call__(self, vectors: Tensor) -> Tensor:
        """(V, D) -> (V, D)."""
        return _Steps.apply(vectors, self)  # type: ignore[no-any-return]

    def forward(self, vectors: Tensor) -> tuple[Tensor, list[Tensor]]:
        """X, and the dual (E, D) of each step."""
        duals: list[Tensor] = []
        filtered = vectors
        for _ in range(self.layers):
            dual, scaled, gathered = self._dual(vectors), filtered * self.scale * self.beta, torch.zeros_like(vectors)
            for block in self.blocks:
                change = scaled.index_select(0, block.users).sub_(scaled.index_select(0, block.items))
                if duals:
                    change.add_(duals[-1][block.rows])
                own = torch.clamp(change, -self.threshold, self.threshold, out=dual[block.rows])
                _gather(gathered, own, block)
            duals.append(dual)
            filtered = torch.addcmul(vectors, gathered, self.scale, value=-1)
        return filtered, duals

    def backward(self, grad: Tensor, duals: list[Tensor]) -> Tensor:
        """The gradient in V, from that in X and the duals of `forward`, which are used up."""
        total, of_dual = grad.clone(), self._dual(grad)
        for step in reversed(range(self.layers)):
            scaled, gathered = grad * self.scale, torch.zeros_like(grad)
            for block in self.blocks:
                change = scaled.index_select(0, block.items).sub_(scaled.index_select(0, block.users))
                if step < self.layers - 1:
                    change.add_(of_dual[block.rows])
                own, clipped = of_dual[block.rows], duals[step][block.rows]
                _zero_where_clipped(change, clipped, -self.threshold, self.threshold, grad_input=own)
                _gather(gathered, own, block)
            grad = gathered * self.scale * self.beta
            total += grad
        self._unused += [of_dual, *duals]
        return total

    def _dual(self, like: Tensor) -> Tensor:
        """Memory for a dual."""
        shape = sum(len(block.users) for block in self.blocks), like.shape[1]
        while self._unused:
            if (dual := self._unused.pop()).shape == shape:
                return dual
        return like.new_empty(shape)


class _Steps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, vectors: Tensor, trend: Trend) -> Tensor:
        filtered, ctx.duals = trend.forward(vectors)  # type: ignore[attr-defined]
        ctx.trend = trend  # type: ignore[attr-defined]
        return filtered

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        duals, ctx.duals = ctx.duals, None  # their memory is used again, so there is no second pass
        return ctx.trend.backward(grad.contiguous(), duals), None


def _block(rows: slice, users: Tensor, items: Tensor, like: Tensor) -> _Block:
    nodes, place = torch.unique(torch.cat([users, items]), return_inverse=True)
    edges = torch.arange(len(users), device=users.device).repeat(2)
    signs = torch.cat([like.new_ones(len(users)), -like.new_ones(len(items))])
    order = torch.argsort(place, stable=True)
    number = torch.bincount(place, minlength=len(nodes))
    return _Block(rows, users, items, nodes, edges[order], signs[order], number.cumsum(0) - number)


def _gather(into: Tensor, values: Tensor, block: _Block) -> None:
    """Add the values (e, D) of the edges of a block to their ends, with signs: into (V, D)."""
    sums = nn.functional.embedding_bag(block.edges, values, block.starts, mode="sum", per_sample_weights=block.signs)
    into.index_copy_(0, block.nodes, sums.add_(into.index_select(0, block.nodes)))
