"""Field vectors at inference as two factors, for backbones that do not need their product."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn


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
        self._folded: dict[nn.Linear, tuple[Tensor, Tensor]] = {}

    def folded(self, linear: nn.Linear, norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
        """A trained layer (O, F * D) and its BatchNorm as one weight (K, O) and bias (O,) for `Factored.values`."""
        if linear not in self._folded:
            assert norm.running_mean is not None and norm.running_var is not None
            scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
            blocks = (linear.weight * scale[:, None]).view(-1, len(self.fields), self.dim)
            parts = [self.stacked[c] @ blocks[:, f].T for c, f in zip(self.columns, self.fields, strict=True)]
            bias = (linear.bias - norm.running_mean) * scale + norm.bias
            self._folded[linear] = torch.cat(parts).detach(), bias.detach()
        return self._folded[linear]


class Factored:
    """The vectors x_f = e_f Q_f of a batch. The rows of Q_f are orthonormal, so x_f and e_f have the same length.

    Linear functions of the vectors and functions of their lengths read d_f numbers per field instead of D.

    Args:
        values: (B, K) the concatenated e_f.
        lifts: the Q_f.
    """

    def __init__(self, values: Tensor, lifts: Lifts) -> None:
        self.values, self.lifts = values, lifts

    def total(self) -> Tensor:
        """(B, D) sum of the field vectors."""
        return self.values @ self.lifts.stacked

    def squares(self) -> Tensor:
        """(B,) sum of the squared lengths of the field vectors."""
        return squares(self.values)

    def through(self, linear: nn.Linear, norm: nn.BatchNorm1d) -> Tensor:
        """(B, O): outputs of a layer and its BatchNorm on the concatenated vectors (B, F * D)."""
        weight, bias = self.lifts.folded(linear, norm)
        return torch.addmm(bias, self.values, weight)

    def dense(self) -> Tensor:
        """(B, F, D): the field vectors multiplied out."""
        lifts = self.lifts
        lifted = []
        for columns, number in lifts.runs:
            values = self.values[:, columns].view(len(self.values), number, -1).transpose(0, 1)
            lifted.append(values @ lifts.stacked[columns].view(number, -1, lifts.dim))
        return torch.cat(lifted).transpose(0, 1).index_select(1, lifts.places)


def squares(flat: Tensor) -> Tensor:
    """(B, K) -> (B,) sum of squares, in one pass over the numbers."""
    return torch.linalg.vector_norm(flat, dim=1).square()
