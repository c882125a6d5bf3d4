"""AutoEmb's embedding: a value has one vector per candidate dimension, and its popularity weighs them.

Zhao et al. 2021, "AutoEmb", ICDM (arXiv 2002.11252), as its authors' group published it with ESAPN. A value's t-th
vector e_t (D_t,) is a slice of the value's row that no other candidate reads. Every slice is lifted to D coordinates,

    x_t = tanh(BN(A_t e_t)),      x = sum_t w_t x_t,

and the field's controller gives the weights w = softmax(W_2 tanh(W_1 p + b_1) + b_2), where p is the embedding of the
bucket of the value's popularity.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from pipeline.data.schema import Schema
from pipeline.embeddings.batch import Occurrences
from pipeline.embeddings.contract import FieldEmbedding
from pipeline.embeddings.folded_mixture import EPS, MOMENTUM
from pipeline.embeddings.table import Table, field_of, field_sums, grouped_matmul

GAIN = 0.1  # of BatchNorm before training


class Slices(nn.Module):
    """The vectors of all candidates, lifted to D coordinates and mixed.

    NOTE[DIFF]: A_t e_t has no bias b_t, because BatchNorm would remove it. BatchNorm's gain and shift are shared by the
    candidates of a field, as published. Its running moments are not: in training each candidate is normalised by its
    own moments, and so it is in evaluation. The gain starts at `GAIN` instead of 1; with 1, the inner products of tens
    of fields would start far too large, see `pipeline.embeddings.folded_mixture.FoldedMixture`.

    Args:
        schema: F fields.
        dims: T distinct candidate dims; 0 has no slice and contributes nothing.
        dim: D.

    Raises:
        ValueError: if dims repeat, are negative, or are all 0.
    """

    def __init__(self, schema: Schema, dims: Sequence[int], dim: int) -> None:
        super().__init__()
        if len(set(dims)) < len(dims) or min(dims) < 0 or not max(dims):
            raise ValueError(f"dims of slices must be distinct, at least 0, and not all 0, got {list(dims)}")
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
        """Occurrences, weights (U, T) of each row's candidates -> mixed vectors (U, D)."""
        slices = self.table(occ.rows).split(self.dims, dim=1)
        field = field_of(occ.ends, occ.rows)
        mass = occ.shares() if self.training else None
        shift = self.shift.index_select(0, field)
        mixture = torch.zeros_like(shift)
        for t, (d, values) in enumerate(zip(self.dims, slices, strict=True)):
            if not d:
                continue
            lifted = grouped_matmul(values.contiguous(), self.maps[str(d)], occ.ends)
            if mass is None:
                mean, variance = self.mean[t], self.variance[t]
            else:
                mean = field_sums(lifted, occ.ends, mass)
                variance = field_sums((lifted - mean.index_select(0, field)).square(), occ.ends, mass)
                self._track(t, mean, variance, occ.bags_per_field())
            scale = self.gain * torch.rsqrt(variance + EPS)
            offset = torch.addcmul(shift, mean.index_select(0, field), scale.index_select(0, field), value=-1)
            moved = torch.addcmul(offset, lifted, scale.index_select(0, field))
            mixture = torch.addcmul(mixture, weights[:, t, None], torch.tanh(moved))
        return mixture

    @torch.no_grad()
    def _track(self, t: int, mean: Tensor, variance: Tensor, bags: int | Tensor) -> None:
        number = torch.as_tensor(bags, device=mean.device).expand(len(mean))[:, None]
        momentum = self.momentum * (number > 0)
        self.mean[t].lerp_(mean, momentum)
        self.variance[t].lerp_(variance * (number / (number - 1).clamp(min=1)), momentum)

    def packed(self) -> dict[str, Tensor]:
        maps = {f"projection.{d}": matrix.detach() for d, matrix in self.maps.items()}
        affine = {"affine.gain": self.gain.detach(), "affine.shift": self.shift.detach()}
        return {"table": self.table.weight.detach(), **maps, **affine, "moments.mean": self.mean} | {
            "moments.variance": self.variance
        }


class Controllers(nn.Module):
    """A small network per field, from the bucket of the popularity to the weights of the candidates.

    NOTE[DIFF]: there is no BatchNorm, because the input is not a batch but a few buckets, all computed at once. The
    input does not hold the value's weights at its last occurrence, which would take T numbers per value; in the
    published code, policy type 1 has them and another type does not. Weights start equal.

    Args:
        valid: (F, T) bool: whether a field has a candidate.
        buckets: S, of the popularity.
        width: of a bucket's embedding; 32 as published.
        hidden: width of the hidden layer; 512 as published.
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
        """(F, S, T) log-weights of the candidates in every bucket; -inf for candidates that a field does not have."""
        inputs = self.popularity.expand(len(self.first), -1, -1)
        hidden = torch.tanh(torch.bmm(inputs, self.first) + self.first_bias)
        logits = torch.bmm(hidden, self.second) + self.second_bias
        return torch.log_softmax(logits.masked_fill(~self.valid[:, None], -torch.inf), dim=2)


BUCKETS = 16  # of popularity: never seen, once, 2 to 3, 4 to 7, ...; the last is open
By = Literal["controllers", "equal", "rule"]


def bucket_of(counts: Tensor) -> Tensor:
    """The bucket of a value that was seen ``counts`` times: floor(log2(count + 1)), at most `BUCKETS` - 1."""
    return torch.log2(counts.float() + 1).floor().long().clamp(max=BUCKETS - 1)


def rule(candidates: int) -> Tensor:
    """(S, T) one-hot weights of a hand-made rule: the more often a value was seen, the wider its candidate.

    Buckets 0 to 9 are divided evenly among the candidates; later buckets, 1023 times or more, have the widest one.
    """
    step = (torch.arange(BUCKETS) * candidates / 10).floor().long().clamp(max=candidates - 1)
    return one_hot(step, candidates).float()


class ByPopularity(FieldEmbedding):
    """Slices of several dimensions, weighted by how often a value was seen so far.

    Args:
        schema: F fields.
        dims: T candidate dims, ascending; with a single one, this is a plain table with the same transform.
        dim: D.
        by: the source of the weights: "controllers"; "equal", all are 1 / T; or "rule", one candidate has weight 1.
    """

    def __init__(self, schema: Schema, dims: Sequence[int], dim: int, by: By) -> None:
        super().__init__()
        self.dim, self.by, self.dims = dim, by, list(dims)
        self.hard = False  # whether the candidate of the largest weight has weight 1, and all others 0
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
        """(F, S, T) weights of the candidates in every bucket."""
        weights = self.fixed if self.controllers is None else self.controllers().exp()
        return one_hot(weights.argmax(2), weights.shape[2]).to(weights.dtype) if self.hard else weights

    def vectors(self, occ: Occurrences) -> Tensor:
        place = field_of(occ.ends, occ.rows) * BUCKETS + bucket_of(self.counts[occ.rows])
        vectors: Tensor = self.slices(occ, nn.functional.embedding(place, self.weights().flatten(0, 1)))
        return vectors

    def arch_parameters(self) -> list[nn.Parameter]:
        return [] if self.controllers is None else list(self.controllers.parameters())

    @torch.no_grad()
    def count(self, rows: Tensor) -> None:
        """Add one to a row's counter for each time that the row occurs in rows (n,)."""
        self.counts += torch.bincount(rows, minlength=len(self.counts)).int()

    def packed(self) -> dict[str, Tensor]:
        """The tensors to serve the embedding, and to continue counting if the weights depend on the counts.

        If only one candidate of a value has weight at its current popularity, only that candidate's slice is kept.
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
        """(F, S) expected dimension, the sum of w_t d_t over t, of each field in every bucket."""
        expected: np.ndarray = (self.weights() @ torch.tensor(self.dims, dtype=torch.float32)).cpu().numpy()
        return expected
