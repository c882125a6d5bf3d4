"""Field vectors at inference that are not multiplied out, where a backbone needs no more of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn


class Lifts:
    """Matrices Q_f (d_f, D) with orthonormal rows, one for each of F fields, and what is made of them once.

    Args:
        stacked: (K, D) the Q_f below each other, K numbers in all; fields of one dimension stand together.
        widths: (F,) d_f, in that order.
        fields: (F,) where the backbone has these fields.
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
        """(K, O), (O,): weight and bias on values, of a layer (O, F * D) and its BatchNorm that are trained no more."""
        if linear not in self._folded:
            assert norm.running_mean is not None and norm.running_var is not None
            scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
            blocks = (linear.weight * scale[:, None]).view(-1, len(self.fields), self.dim)
            parts = [self.stacked[c] @ blocks[:, f].T for c, f in zip(self.columns, self.fields, strict=True)]
            bias = (linear.bias - norm.running_mean) * scale + norm.bias
            self._folded[linear] = torch.cat(parts).detach(), bias.detach()
        return self._folded[linear]


class Factored:
    """The vectors x_f = e_f Q_f of a batch. The rows of Q_f are orthonormal, so x_f is as long as e_f.

    What is linear in the vectors, or asks for their lengths alone, costs d_f numbers a field instead of D.

    Args:
        values: (B, K) the e_f side by side.
        lifts: the Q_f.
    """

    def __init__(self, values: Tensor, lifts: Lifts) -> None:
        self.values, self.lifts = values, lifts

    def total(self) -> Tensor:
        """(B, D) sum of the field vectors."""
        return self.values @ self.lifts.stacked

    def squares(self) -> Tensor:
        """(B,) sum of their squared lengths."""
        return squares(self.values)

    def through(self, linear: nn.Linear, norm: nn.BatchNorm1d) -> Tensor:
        """(B, O) what a layer and its BatchNorm make of the vectors side by side, (B, F * D)."""
        weight, bias = self.lifts.folded(linear, norm)
        return torch.addmm(bias, self.values, weight)

    def dense(self) -> Tensor:
        """(B, F, D) after all, for a backbone that needs it."""
        lifts = self.lifts
        lifted = []
        for columns, number in lifts.runs:
            values = self.values[:, columns].view(len(self.values), number, -1).transpose(0, 1)
            lifted.append(values @ lifts.stacked[columns].view(number, -1, lifts.dim))
        return torch.cat(lifted).transpose(0, 1).index_select(1, lifts.places)


def squares(flat: Tensor) -> Tensor:
    """(B, K) -> (B,) sums of squares, in one pass over the numbers."""
    return torch.linalg.vector_norm(flat, dim=1).square()
