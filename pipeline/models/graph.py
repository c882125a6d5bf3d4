"""The graph of training interactions, and products with its matrices that need no dense matrix of nodes."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx


class _Product(torch.autograd.Function):
    """matrix @ values, where the backward pass multiplies by a transpose that is stored beside it."""

    @staticmethod
    def forward(ctx: FunctionCtx, values: Tensor, matrix: Tensor, transpose: Tensor) -> Tensor:
        ctx.transpose = transpose  # type: ignore[attr-defined]
        return matrix @ values

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return ctx.transpose @ grad.contiguous(), None, None


def _csr(rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    matrix = torch.sparse_coo_tensor(torch.stack([rows, columns]), values, shape, check_invariants=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        return matrix.to_sparse_csr()


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
        self._matrices: dict[str, tuple[Tensor, Tensor]] = {}  # by name, with its transpose; made at first use

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

    def _matrix(self, name: str, like: Tensor) -> tuple[Tensor, Tensor]:
        """A matrix and its transpose, in CSR, on the device and in the type of ``like``."""
        made = self._matrices.get(name)
        if made is None or made[0].device != like.device or made[0].dtype != like.dtype:
            made = self._incidence(like) if name == "incidence" else self._adjacency(int(name.split()[1]), like)
            self._matrices[name] = made
        return made

    def _adjacency(self, loops: int, like: Tensor) -> tuple[Tensor, Tensor]:
        scale = torch.where(self.degrees > 0, (self.degrees + loops).to(like.dtype).rsqrt(), 0)
        weights = scale[self.users] * scale[self.items]
        rows, columns = torch.cat([self.users, self.items]), torch.cat([self.items, self.users])
        matrix = _csr(rows, columns, torch.cat([weights, weights]), (self.nodes, self.nodes))
        return matrix, matrix  # it is symmetric

    def _incidence(self, like: Tensor) -> tuple[Tensor, Tensor]:
        scale = (self.degrees + 1).to(like.dtype).rsqrt()
        number = len(self.users)
        pairs = torch.arange(number, device=like.device).repeat(2)
        nodes = torch.cat([self.users, self.items])
        values = torch.cat([scale[self.users], -scale[self.items]])
        return (
            _csr(pairs, nodes, values, (number, self.nodes)),
            _csr(nodes, pairs, values, (self.nodes, number)),
        )
