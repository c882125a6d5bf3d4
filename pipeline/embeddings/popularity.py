"""AutoEmb's embedding: every value has a vector of each candidate dimension, mixed with weights by its popularity.

Zhao et al. 2021, "AutoEmb", ICDM (arXiv 2002.11252), as its authors' group published it with ESAPN. A value's t-th
vector e_t (D_t,) is a slice of its own of the table, no other candidate reads it. All are brought to D coordinates,

    x_t = tanh(BN(A_t e_t)),      x = sum_t w_t x_t,

and w = softmax(W_2 tanh(W_1 p + b_1) + b_2) is what the field's controller makes of p, the embedding of the bucket that
the value's popularity is in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from pipeline.data.schema import Schema
from pipeline.embeddings.batch import Occurrences, spread
from pipeline.embeddings.contract import FieldEmbedding
from pipeline.embeddings.folded_mixture import EPS, MOMENTUM
from pipeline.embeddings.table import Table, field_of, field_sums, grouped_matmul

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


BUCKETS = 16  # of popularity: never seen, once, 2 to 3, 4 to 7, ...; the last is open
By = Literal["controllers", "equal", "rule"]


def bucket_of(counts: Tensor) -> Tensor:
    """Times that a value was seen -> number of its bucket, floor(log2(count + 1)), up to `BUCKETS` - 1."""
    return torch.log2(counts.float() + 1).floor().long().clamp(max=BUCKETS - 1)


def rule(candidates: int) -> Tensor:
    """(S, T) the popularity rule made by hand: the wider, the more often a value was seen, in equal steps of log2.

    Values seen 1023 times and more have the widest candidate, those never seen the narrowest.
    """
    step = (torch.arange(BUCKETS) * candidates / 10).floor().long().clamp(max=candidates - 1)
    return one_hot(step, candidates).float()


class ByPopularity(FieldEmbedding):
    """Slices of several dimensions, weighted by how often a value was seen until now.

    Args:
        schema: F fields.
        dims: T candidate dims, ascending; a single one is a plain table under the same transform.
        dim: D.
        by: what gives the weights: controllers, nothing (all are 1/T), or the rule, which chooses.
    """

    def __init__(self, schema: Schema, dims: Sequence[int], dim: int, by: By) -> None:
        super().__init__()
        self.dim, self.by, self.dims = dim, by, list(dims)
        self.hard = False  # whether only the candidate of the largest weight counts, with weight 1
        self.slices = Slices(schema, dims, dim)
        every = torch.ones(len(schema), len(dims), dtype=torch.bool)
        self.controllers = Controllers(every, BUCKETS) if by == "controllers" else None
        fixed = rule(len(dims)) if by == "rule" else torch.full((BUCKETS, len(dims)), 1 / len(dims))
        self.register_buffer("fixed", fixed.expand(len(schema), -1, -1), False)
        self.register_buffer("counts", torch.zeros(schema.num_rows, dtype=torch.int32))
        fields = np.repeat(np.arange(len(schema)), schema.cardinalities)
        self.register_buffer("fields", torch.tensor(fields), False)

    fixed: Tensor
    counts: Tensor
    fields: Tensor

    def weights(self) -> Tensor:
        """(F, S, T) of the candidates in every bucket."""
        weights = self.fixed if self.controllers is None else self.controllers().exp()
        return one_hot(weights.argmax(2), weights.shape[2]).to(weights.dtype) if self.hard else weights

    def forward(self, occ: Occurrences) -> Tensor:
        """Occurrences -> (B, F, D)."""
        place = field_of(occ.ends, len(occ.rows)) * BUCKETS + bucket_of(self.counts[occ.rows])
        embedded: Tensor = self.slices(occ, nn.functional.embedding(place, self.weights().flatten(0, 1)))
        return embedded

    def arch_parameters(self) -> list[nn.Parameter]:
        return [] if self.controllers is None else list(self.controllers.parameters())

    @torch.no_grad()
    def count(self, rows: Tensor) -> None:
        """Add one to a row's counter for each time that it occurs in rows (n,)."""
        self.counts += torch.bincount(rows, minlength=len(self.counts)).int()

    def packed(self) -> dict[str, Tensor]:
        """What it takes to serve, and to go on counting where weights go by the counts.

        Where one candidate alone counts, of a value's slices only that one, at the popularity that the value has now.
        """
        kept = self.slices.packed()
        if self.by != "equal":
            kept["counters"] = self.counts
        if self.controllers is not None:
            kept |= {f"controller.{name}": value.detach() for name, value in self.controllers.named_parameters()}
        if self.hard or self.by == "rule":
            chosen = self.weights().argmax(2)[self.fields, bucket_of(self.counts)]
            slices = kept["table"].split(self.dims, dim=1)
            kept["table"] = torch.cat([values[chosen == t].flatten() for t, values in enumerate(slices)])
        return kept

    @torch.no_grad()
    def expected_dims(self) -> np.ndarray:
        """(F, S) sum of w_t d_t in every bucket."""
        expected: np.ndarray = (self.weights() @ torch.tensor(self.dims, dtype=torch.float32)).cpu().numpy()
        return expected
