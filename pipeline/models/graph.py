"""The graph of training interactions, and products with its matrices that need no dense matrix of nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from pipeline.embeddings.batch import bag_sum


@dataclass(frozen=True)
class Sparse:
    """A sparse matrix by rows (CSR): row r has the columns ``columns[starts[r]:starts[r + 1]]``.

    Args:
        columns: (n,) int64.
        starts: (rows,) where each row begins.
        values: (n,).
    """

    columns: Tensor
    starts: Tensor
    values: Tensor

    @classmethod
    def of(cls, rows: Tensor, columns: Tensor, values: Tensor, number: int) -> Sparse:
        """The matrix of ``number`` rows with ``values`` at ``rows`` and ``columns``; what stands there twice is added
        in products."""
        order = torch.argsort(rows, stable=True)
        sizes = torch.bincount(rows, minlength=number)
        return cls(columns[order], torch.cumsum(sizes, 0) - sizes, values[order])

    def times(self, dense: Tensor) -> Tensor:
        """(columns, K) -> (rows, K). `embedding_bag` is two to three times as fast as products of sparse tensors."""
        return bag_sum(dense, self.columns, self.starts, self.values)


class _Product(torch.autograd.Function):
    """matrix @ values, where the backward pass multiplies by a transpose that is stored beside it."""

    @staticmethod
    def forward(ctx: FunctionCtx, values: Tensor, matrix: Sparse, transpose: Sparse) -> Tensor:
        ctx.transpose = transpose  # type: ignore[attr-defined]
        return matrix.times(values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return ctx.transpose.times(grad.contiguous()), None, None


class Graph(nn.Module):
    """The undirected graph of E distinct pairs of a user and an item, on V nodes.

    Args:
        users, items: (E,) int64 nodes of each pair.
        nodes: V.
    """

    def __init__(self, users: Tensor, items: Tensor, nodes: int) -> None:
        super().__init__()
        self.nodes = nodes
        self.register_buffer("users", users, persistent=False)
        self.register_buffer("items", items, persistent=False)
        degrees = torch.bincount(torch.cat([users, items]), minlength=nodes).to(torch.get_default_dtype())
        self.register_buffer("degrees", degrees, persistent=False)
        self._matrices: dict[str, tuple[Sparse, Sparse]] = {}  # by name, with its transpose; made at first use

    users: Tensor
    items: Tensor
    degrees: Tensor

    def __deepcopy__(self, memo: dict[int, Any]) -> Graph:
        return Graph(self.users, self.items, self.nodes)

    def adjacent(self, values: Tensor, loops: int = 0) -> Tensor:
        """The normalised adjacency matrix times values (V, K): S A S values, where S = diag(degrees + loops)^-1/2.

        He et al. 2020 (LightGCN), eq. 7 and 8, with loops = 0. Nodes without edges get zeros.
        """
        matrix, transpose = self._matrix(f"adjacent {loops}", values)
        return _Product.apply(values, matrix, transpose)  # type: ignore[no-any-return]

    def laplacian(self, values: Tensor) -> Tensor:
        """Delta^T Delta values, for Delta of `differences`, without its E rows: (V, K) -> (V, K)."""
        degrees = self.degrees.to(values.dtype)
        return (degrees / (degrees + 1))[:, None] * values - self.adjacent(values, loops=1)

    def differences(self, values: Tensor) -> Tensor:
        """(V, K) -> (E, K): for each pair, s_u values_u - s_i values_i, where s = (degree + 1)^-1/2.

        Fan et al. 2022 (GTN): the incidence matrix of the graph, normalised, times values.
        """
        matrix, transpose = self._matrix("incidence", values)
        return _Product.apply(values, matrix, transpose)  # type: ignore[no-any-return]

    def gather(self, values: Tensor) -> Tensor:
        """(E, K) -> (V, K): the transpose of `differences`."""
        matrix, transpose = self._matrix("incidence", values)
        return _Product.apply(values, transpose, matrix)  # type: ignore[no-any-return]

    def _matrix(self, name: str, like: Tensor) -> tuple[Sparse, Sparse]:
        """A matrix and its transpose, on the device and in the type of ``like``."""
        made = self._matrices.get(name)
        if made is None or made[0].values.device != like.device or made[0].values.dtype != like.dtype:
            made = self._incidence(like) if name == "incidence" else self._adjacency(int(name.split()[1]), like)
            self._matrices[name] = made
        return made

    def _adjacency(self, loops: int, like: Tensor) -> tuple[Sparse, Sparse]:
        scale = torch.where(self.degrees > 0, (self.degrees + loops).to(like.dtype).rsqrt(), 0)
        weights = scale[self.users] * scale[self.items]
        rows, columns = torch.cat([self.users, self.items]), torch.cat([self.items, self.users])
        matrix = Sparse.of(rows, columns, torch.cat([weights, weights]), self.nodes)
        return matrix, matrix  # it is symmetric

    def _incidence(self, like: Tensor) -> tuple[Sparse, Sparse]:
        scale = (self.degrees + 1).to(like.dtype).rsqrt()
        number = len(self.users)
        pairs = torch.arange(number, device=like.device).repeat(2)
        nodes = torch.cat([self.users, self.items])
        values = torch.cat([scale[self.users], -scale[self.items]])
        return Sparse.of(pairs, nodes, values, number), Sparse.of(nodes, pairs, values, self.nodes)
