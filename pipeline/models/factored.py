"""Field vectors at inference in forms that cost less than all their numbers, for backbones that can do with them."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.embeddings.batch import Direct, bag_sum
from pipeline.embeddings.table import grouped_matmul


class Folds:
    """Caches what trained BatchNorms do at inference: they scale and shift the outputs of the layer below."""

    def __init__(self) -> None:
        self._norms: dict[nn.BatchNorm1d, tuple[Tensor, Tensor]] = {}
        self._layers: dict[nn.Linear, tuple[Tensor, Tensor]] = {}

    def norm(self, norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
        """Scale (O,) and shift (O,)."""
        if norm not in self._norms:
            assert norm.running_mean is not None and norm.running_var is not None
            scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
            self._norms[norm] = scale.detach(), (norm.bias - norm.running_mean * scale).detach()
        return self._norms[norm]

    def layer(self, linear: nn.Linear, norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
        """Weight (O, I) and bias (O,) of a layer and its BatchNorm."""
        if linear not in self._layers:
            scale, shift = self.norm(norm)
            self._layers[linear] = (linear.weight * scale[:, None]).detach(), (linear.bias * scale + shift).detach()
        return self._layers[linear]


class Vectors(ABC):
    """The field vectors of a batch at inference; F fields of D numbers.

    Attributes:
        folds: of the model.
    """

    folds: Folds

    @abstractmethod
    def total(self) -> Tensor:
        """(B, D) sum of the field vectors."""

    @abstractmethod
    def squares(self) -> Tensor:
        """(B,) sum of the squared lengths of the field vectors."""

    @abstractmethod
    def through(self, linear: nn.Linear, norm: nn.BatchNorm1d) -> Tensor:
        """(B, O): outputs of a layer and its BatchNorm on the concatenated vectors (B, F * D)."""

    @abstractmethod
    def dense(self) -> Tensor:
        """(B, F, D)."""


class Lifts:
    """Matrices Q_f (d_f, D) with orthonormal rows, one per field, and a cache of the layers that are folded into them.

    Args:
        stacked: (K, D) the Q_f below each other, K being the sum of the d_f; fields of equal dimension are contiguous.
        widths: (F,) d_f, in the order of ``stacked``.
        fields: (F,) position of each of these fields in the backbone.
    """

    def __init__(self, stacked: Tensor, widths: Sequence[int], fields: Sequence[int]) -> None:
        self.stacked, self.dim = stacked, stacked.shape[1]
        ends = np.cumsum(widths)
        self.columns = [slice(int(end - width), int(end)) for width, end in zip(widths, ends, strict=True)]
        self.fields = list(fields)
        self.places = torch.from_numpy(np.argsort(fields))
        runs = [list(run) for _, run in itertools.groupby(range(len(widths)), key=lambda i: int(widths[i]))]
        self.runs = [(slice(self.columns[r[0]].start, self.columns[r[-1]].stop), len(r)) for r in runs]
        self.folds = Folds()
        self._folded: dict[nn.Linear, tuple[Tensor, Tensor]] = {}

    def folded(self, linear: nn.Linear, norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
        """A trained layer (O, F * D) and its BatchNorm as one weight (K, O) and bias (O,) for `Factored.values`."""
        if linear not in self._folded:
            scale, shift = self.folds.norm(norm)
            blocks = (linear.weight * scale[:, None]).view(-1, len(self.fields), self.dim)
            parts = [self.stacked[c] @ blocks[:, f].T for c, f in zip(self.columns, self.fields, strict=True)]
            self._folded[linear] = torch.cat(parts).detach(), (linear.bias * scale + shift).detach()
        return self._folded[linear]


class Factored(Vectors):
    """The vectors x_f = e_f Q_f of a batch. The rows of Q_f are orthonormal, so x_f and e_f have the same length.

    Linear functions of the vectors and functions of their lengths read d_f numbers per field instead of D.

    Args:
        values: (B, K) the concatenated e_f.
        lifts: the Q_f.
    """

    def __init__(self, values: Tensor, lifts: Lifts) -> None:
        self.values, self.lifts, self.folds = values, lifts, lifts.folds

    def total(self) -> Tensor:
        return self.values @ self.lifts.stacked

    def squares(self) -> Tensor:
        return squares(self.values)

    def through(self, linear: nn.Linear, norm: nn.BatchNorm1d) -> Tensor:
        weight, bias = self.lifts.folded(linear, norm)
        return torch.addmm(bias, self.values, weight)

    def dense(self) -> Tensor:
        lifts = self.lifts
        lifted = []
        for columns, number in lifts.runs:
            values = self.values[:, columns].view(len(self.values), number, -1).transpose(0, 1)
            lifted.append(values @ lifts.stacked[columns].view(number, -1, lifts.dim))
        return torch.cat(lifted).transpose(0, 1).index_select(1, lifts.places)


class Few(Vectors):
    """The vectors of a small batch, for which the number of calls matters and not that of the numbers.

    Args:
        vectors: (B, F, D).
        folds: of the model.
    """

    def __init__(self, vectors: Tensor, folds: Folds) -> None:
        self.vectors, self.flat, self.folds = vectors, vectors.flatten(1), folds

    def total(self) -> Tensor:
        return self.vectors.sum(1)

    def squares(self) -> Tensor:
        return torch.linalg.vecdot(self.flat, self.flat)

    def through(self, linear: nn.Linear, norm: nn.BatchNorm1d) -> Tensor:
        scale, shift = self.folds.norm(norm)
        return torch.addcmul(shift, nn.functional.linear(self.flat, linear.weight, linear.bias), scale)

    def dense(self) -> Tensor:
        return self.vectors


class Repeated(Vectors):
    """The vectors of a large batch, in which rows repeat: what depends on a single row is computed once for each row.

    2,000 rows of ids with 39 fields are 78,000 lookups of about 15,000 distinct rows. The first layer of an MLP is a
    sum of one product per field, so it multiplies the distinct vectors and adds up the products of each row of ids.

    Args:
        rows: (U, K) of the distinct rows, ordered by field: vectors (U, D), and what else is summed.
        dim: D.
        ends: (F,) int32, where the rows of each field end.
        inverse: (B * S,) int32 distinct row of each occurrence; sums of int32 are faster than those of int64.
        occ: of the batch.
        folds: of the model.
    """

    def __init__(self, rows: Tensor, dim: int, ends: Tensor, inverse: Tensor, occ: Direct, folds: Folds) -> None:
        self.rows, self.vectors, self.ends, self.inverse, self.occ = rows, rows[:, :dim], ends, inverse, occ
        self.folds = folds
        self.starts = torch.arange(0, len(inverse), len(inverse) // occ.shape[0], dtype=torch.int32)

    @cached_property
    def sums(self) -> Tensor:
        """(B, K): the sum of ``rows`` over each row of ids, weighted in bags."""
        return self._summed(self.rows)

    def total(self) -> Tensor:
        return self.sums[:, : self.vectors.shape[1]]

    def squares(self) -> Tensor:
        if self.occ.bag_starts is not None:  # the square of a mean is not the mean of the squares
            return squares(self.dense().flatten(1))
        lengths = torch.linalg.vecdot(self.vectors, self.vectors)
        return lengths.index_select(0, self.inverse).view(self.occ.shape).sum(1)

    def through(self, linear: nn.Linear, norm: nn.BatchNorm1d) -> Tensor:
        scale, shift = self.folds.norm(norm)
        weights = linear.weight.view(len(linear.weight), len(self.ends), -1).permute(1, 2, 0)  # (F, D, O)
        products = grouped_matmul(self.vectors, weights, self.ends)
        return torch.addcmul(shift, self._summed(products) + linear.bias, scale)

    def dense(self) -> Tensor:
        if self.occ.bag_starts is None:
            return self.vectors.index_select(0, self.inverse).view(*self.occ.shape, -1)
        return bag_sum(self.vectors, self.inverse, self.occ.bag_starts, self.occ.weights).view(*self.occ.shape, -1)

    def _summed(self, values: Tensor) -> Tensor:
        return bag_sum(values, self.inverse, self.starts, self.occ.weights)


def squares(flat: Tensor) -> Tensor:
    """(B, K) -> (B,) sum of squares, in one pass over the numbers."""
    return torch.linalg.vector_norm(flat, dim=1).square()
