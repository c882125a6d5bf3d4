"""AutoEmb's embedding: every value has a vector of each candidate dimension, mixed with weights by its popularity.

Zhao et al. 2021, "AutoEmb", ICDM (arXiv 2002.11252), as its authors' group published it with ESAPN. A value's t-th
vector e_t (D_t,) is a slice of its own of the table, no other candidate reads it. All are brought to D coordinates,

    x_t = tanh(BN(A_t e_t)),      x = sum_t w_t x_t,

and w = softmax(W_2 tanh(W_1 p + b_1) + b_2) is what the field's controller makes of p, the embedding of the bucket that
the value's popularity is in.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.embeddings import Occurrences, Table, grouped_matmul, spread
from pipeline.mixtures import EPS, MOMENTUM, field_of, field_sums
from pipeline.schema import Schema

GAIN = 0.1  # of BatchNorm before training


class Slices(nn.Module):
    """The candidates' vectors and what brings them to D coordinates.

    NOTE[DIFF]: no bias b_t in A_t e_t + b_t, for BatchNorm takes it out again. Its gain and shift are shared by the
    candidates of a field, as published, but not its running moments: each candidate is normalised by its own in
    training, and is so in evaluation. The gain starts at `GAIN` instead of 1, with which inner products of tens of
    fields would start far too large, see `pipeline.mixtures.FoldedMixture`.

    Args:
        schema: F fields.
        dims: T distinct candidate dims; 0 has no slice and contributes nothing.
        dim: D.
    """

    def __init__(self, schema: Schema, dims: Sequence[int], dim: int) -> None:
        super().__init__()
        if len(set(dims)) < len(dims) or min(dims) < 0 or not max(dims):
            raise ValueError(f"slices need distinct dims of 0 or more, and one above 0, however: {list(dims)}")
        self.dims, self.dim = list(dims), dim
        self.momentum = MOMENTUM  # 0 while statistics must stay as they are, as for BatchNorm
        fields = len(schema)
        self.table = Table(schema.num_rows, sum(dims))
        self.maps = nn.ParameterDict({str(d): nn.Parameter(torch.randn(fields, d, dim) / d**0.5) for d in dims if d})
        self.gain = nn.Parameter(torch.full((fields, dim), GAIN))
        self.shift = nn.Parameter(torch.zeros(fields, dim))
        self.register_buffer("mean", torch.zeros(len(dims), fields, dim))
        self.register_buffer("variance", torch.ones(len(dims), fields, dim))

    mean: Tensor
    variance: Tensor

    def forward(self, occ: Occurrences, weights: Tensor) -> Tensor:
        """Occurrences, weights (U, T) of each row's candidates -> (B, F, D)."""
        slices = self.table(occ.rows).split(self.dims, dim=1)
        field = field_of(occ.ends, len(occ.rows))
        mass = occ.mass() / occ.shape[0] if self.training else None
        shift = self.shift.index_select(0, field)
        mixed = torch.zeros_like(shift)
        for t, (d, values) in enumerate(zip(self.dims, slices, strict=True)):
            if not d:
                continue
            lifted = grouped_matmul(values.contiguous(), self.maps[str(d)], occ.ends)
            if mass is None:
                mean, variance = self.mean[t], self.variance[t]
            else:
                mean = field_sums(lifted, occ.ends, mass)
                variance = field_sums((lifted - mean.index_select(0, field)).square(), occ.ends, mass)
                self._track(t, mean, variance, occ.shape[0])
            scale = self.gain * torch.rsqrt(variance + EPS)
            offset = torch.addcmul(shift, mean.index_select(0, field), scale.index_select(0, field), value=-1)
            moved = torch.addcmul(offset, lifted, scale.index_select(0, field))
            mixed = torch.addcmul(mixed, weights[:, t, None], torch.tanh(moved))
        return spread(mixed, occ)

    @torch.no_grad()
    def _track(self, t: int, mean: Tensor, variance: Tensor, batch: int) -> None:
        self.mean[t].lerp_(mean, self.momentum)
        self.variance[t].lerp_(variance * (batch / max(1, batch - 1)), self.momentum)

    def packed(self) -> dict[str, Tensor]:
        maps = {f"projection.{d}": matrix.detach() for d, matrix in self.maps.items()}
        affine = {"affine.gain": self.gain.detach(), "affine.shift": self.shift.detach()}
        return {"table": self.table.weight.detach(), **maps, **affine, "moments.mean": self.mean} | {
            "moments.variance": self.variance
        }


class Controllers(nn.Module):
    """A small network per field from the popularity's bucket to the weights of the candidates.

    NOTE[DIFF]: no BatchNorm, for its input is one of a few buckets, all of which are computed at once, and no batch;
    and no memory of the weights that the value had when it occurred last (the published code's policy type 1 has it,
    another of its types has not), which would be a state of T numbers per value. Weights start equal.

    Args:
        valid: (F, T) bool: which candidates a field has.
        buckets: S, of the popularity.
        width, hidden: of a bucket's embedding and of the hidden layer; 32 and 512 as published.
    """

    def __init__(self, valid: Tensor, buckets: int, width: int = 32, hidden: int = 64) -> None:
        super().__init__()
        fields, candidates = valid.shape
        self.popularity = nn.Parameter(torch.randn(buckets, width))
        self.first = nn.Parameter(torch.randn(fields, width, hidden) / width**0.5)
        self.first_bias = nn.Parameter(torch.zeros(fields, 1, hidden))
        self.second = nn.Parameter(torch.zeros(fields, hidden, candidates))
        self.second_bias = nn.Parameter(torch.zeros(fields, 1, candidates))
        self.register_buffer("valid", valid, persistent=False)

    valid: Tensor

    def forward(self) -> Tensor:
        """(F, S, T) log-weights of the candidates in every bucket; -inf where a field does not have one."""
        inputs = self.popularity.expand(len(self.first), -1, -1)
        hidden = torch.tanh(torch.bmm(inputs, self.first) + self.first_bias)
        logits = torch.bmm(hidden, self.second) + self.second_bias
        return torch.log_softmax(logits.masked_fill(~self.valid[:, None], -torch.inf), dim=2)
