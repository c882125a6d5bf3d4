"""Soft selection among candidate dimensions: the paper's supernet, folded into one affine map per field.

As the paper writes it, AutoDim's search takes the first d_n coordinates of a field's vector for each candidate n, maps
them to D coordinates, normalises each coordinate by BatchNorm without affine, and adds the N results with weights p_n.
BatchNorm of a linear map depends on the batch only through the mean mu (K,) and the covariance C (K, K) of the field's
vector. So the whole mixture is one matrix per field,

    T = sum_n p_n * W_n * rsqrt(diag(W_n^T C W_n) + eps),      x = (e - mu) T,

where W_n is zero outside the coordinates that candidate n reads. T is applied to the distinct rows of the batch.
Outputs, gradients and running statistics equal those of the paper's form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from pipeline.data.schema import Schema
from pipeline.embeddings.batch import Occurrences, spread
from pipeline.embeddings.table import Segments, Table, field_of, field_sums, grouped_matmul, grouped_outer

EPS, MOMENTUM = 1e-5, 0.1  # BatchNorm's defaults
Sharing = Literal["shared", "separate"]
Unification = Literal["linear", "padding"]
Transform = Literal["field", "global"]
Gain = Literal["field", "none"]


class _Moments(torch.autograd.Function):
    """Mean and covariance of each field's vector over a batch, and the rows minus their field's mean.

    Args:
        rows: (U, K) distinct rows, ordered by field.
        mass: (U,) share of each row in the batch; the shares of a field's rows add up to 1.
        ends: where the rows of each field end, or their numbers; see `Occurrences.layout`.

    Returns:
        centred (U, K), mean (F, K), covariance (F, K, K). The mean has no gradient.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, rows: Tensor, mass: Tensor, ends: Tensor | Segments) -> tuple[Tensor, Tensor, Tensor]:
        fields = field_of(ends, rows)
        mean = field_sums(rows, ends, mass)
        centred = rows - mean.index_select(0, fields)
        covariance = grouped_outer(centred * mass[:, None], centred, ends)
        ctx.save_for_backward(centred, mass, fields)  # type: ignore[attr-defined]
        ctx.ends = ends  # type: ignore[attr-defined]
        ctx.mark_non_differentiable(mean)
        return centred, mean, covariance

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any, grad_covariance: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        """The covariance has no gradient through the mean, because the centred rows add up to 0."""
        centred, mass, fields = ctx.saved_tensors
        through = grouped_matmul(centred, grad_covariance + grad_covariance.transpose(1, 2), ctx.ends)
        through = through - field_sums(grad, ctx.ends).index_select(0, fields)
        return torch.addcmul(grad, through, mass[:, None]), None, None


class FoldedMixture(nn.Module):
    """Candidate embeddings of every field, unified to D coordinates and mixed; see the module's docstring.

    Args:
        schema: F fields.
        candidates: candidate dims of each field, ascending, at most ``dim``; 0 contributes nothing.
        dim: D.
        sharing: "shared": candidate n reads the first d_n columns of one table; "separate": columns of its own.
        unification: "linear": a learned d_n x D map, then BatchNorm; "padding": BatchNorm, then zeros up to D.
        transform: "field": each field learns its own maps; "global": all fields share one map per candidate.
        gain: "field": the mixture is scaled by one learned number per field; "none": it is not scaled, as in the paper.
        gain_init: that number before training.

    Raises:
        ValueError: if candidates do not fit the schema or ``dim``, or if an option is unknown.

    NOTE[DIFF]: transform. According to the one source at hand, fields share the maps. In public implementations and in
    re-training, each field has its own maps; so "field" is the default.
    NOTE[DIFF]: gain. BatchNorm without affine gives every coordinate of every field unit variance, even if the field is
    useless. FM's sum of F (F - 1) / 2 inner products then starts at a standard deviation of about F sqrt(D / 2), and
    cannot shrink. One factor per field fixes that. The field's candidates share it, so they stay comparable, which is
    the paper's reason for the normalisation.
    """

    def __init__(
        self,
        schema: Schema,
        candidates: Sequence[Sequence[int]],
        dim: int,
        *,
        sharing: Sharing = "shared",
        unification: Unification = "linear",
        transform: Transform = "field",
        gain: Gain = "field",
        gain_init: float = 0.1,
    ) -> None:
        super().__init__()
        if len(candidates) != len(schema):
            raise ValueError(f"candidates must be given for {len(schema)} fields, got {len(candidates)}")
        too_wide = [dims for dims in candidates if dims[-1] > dim]
        if too_wide:
            raise ValueError(f"candidate dims must be at most {dim=}, got {too_wide[0]}")
        _one_of("sharing", sharing, ("shared", "separate"))
        _one_of("unification", unification, ("linear", "padding"))
        _one_of("transform", transform, ("field", "global"))
        _one_of("gain", gain, ("field", "none"))
        self.dim, self.unification = dim, unification
        self.momentum = MOMENTUM  # 0 while statistics must stay as they are, as for BatchNorm
        reads = _columns_read(candidates, dim, sharing)  # (F, N, K): candidate n may read column k
        places = _places(reads, dim) if unification == "padding" else None  # (F, N, K, D) one-hot
        fields, number, columns = reads.shape
        self.table = Table(schema.num_rows, columns)
        self.register_buffer("reads", reads.to(torch.get_default_dtype())[..., None], persistent=False)
        if unification == "linear":
            fan_in = reads.sum(2).clamp(min=1)[:1] if transform == "global" else reads.sum(2).clamp(min=1)
            shape = (1 if transform == "global" else fields, number, columns, dim)
            self.maps = nn.Parameter(torch.randn(shape) * fan_in[..., None, None] ** -0.5)
        else:
            assert places is not None
            self.register_buffer("places", places.to(torch.get_default_dtype()), persistent=False)
        self.gain = nn.Parameter(torch.full((fields, 1, 1), gain_init)) if gain == "field" else None
        self.bag_fields: list[int] = np.flatnonzero(schema.widths > 1).tolist()
        self.register_buffer("places_of_bags", torch.tensor(self.bag_fields, dtype=torch.int64), persistent=False)
        self.register_buffer("mean", torch.zeros(fields, columns))
        self.register_buffer("covariance", torch.eye(columns).repeat(fields, 1, 1))

    reads: Tensor
    places: Tensor
    places_of_bags: Tensor
    mean: Tensor
    covariance: Tensor

    def forward(self, occ: Occurrences, p: Tensor) -> Tensor:
        """Occurrences, mixture weights p (F, N) -> mixed vectors (U, D)."""
        rows = self.table(occ.rows)  # (U, K)
        if self.training:
            centred, mean, covariance = _Moments.apply(rows, occ.shares(), occ.layout)
            if self.bag_fields:  # the vector of a bag is the average of several rows
                vectors = spread(centred, replace(occ, own=None))  # of the whole batch
                bags = [occ.of_field(vectors, f) for f in self.bag_fields]
                of_bags = torch.stack([one.T @ one / max(1, len(one)) for one in bags])
                covariance = covariance.index_copy(0, self.places_of_bags, of_bags)
            self._track(mean, covariance, occ.bags_per_field())
        else:
            centred = rows - self.mean.index_select(0, field_of(occ.layout, rows))
            covariance = self.covariance
        return grouped_matmul(centred, self._folded(p, covariance), occ.layout)

    @torch.no_grad()
    def _track(self, mean: Tensor, covariance: Tensor, bags: int | Tensor) -> None:
        """Update the running moments as BatchNorm does: unbiased, with momentum; those of fields without bags stay."""
        number = bags if isinstance(bags, Tensor) else torch.full((len(mean),), bags, device=mean.device)
        momentum = self.momentum * (number > 0)
        self.mean.lerp_(mean, momentum[:, None])
        unbiased = number / (number - 1).clamp(min=1)
        self.covariance.lerp_(covariance * unbiased[:, None, None], momentum[:, None, None])

    def _folded(self, p: Tensor, covariance: Tensor) -> Tensor:
        """T (F, K, D) for mixture weights p (F, N) and covariance (F, K, K)."""
        if self.unification == "linear":
            fields, number = p.shape
            maps = self.maps * self.reads  # (F, N, K, D); zero where a candidate does not read the column
            flat = maps.transpose(1, 2).flatten(2)  # (F, K, N * D)
            variance = ((covariance @ flat) * flat).sum(1).view(fields, number, 1, self.dim)
            scale = p[:, :, None, None] * torch.rsqrt(variance + EPS)
            matrix = (maps * scale).sum(1)
        else:
            scale = torch.rsqrt(covariance.diagonal(dim1=1, dim2=2) + EPS)  # (F, K)
            matrix = torch.einsum("fn,fnkd->fkd", p, self.places) * scale[:, :, None]
        return matrix if self.gain is None else matrix * self.gain


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {list(allowed)}, got {value!r}")


def _columns_read(candidates: Sequence[Sequence[int]], dim: int, sharing: Sharing) -> Tensor:
    """(F, N, K) bool: whether a candidate reads a column of the table."""
    number = max(len(dims) for dims in candidates)
    padded = torch.tensor([[*dims, *[0] * (number - len(dims))] for dims in candidates])
    first = torch.zeros_like(padded) if sharing == "shared" else padded.cumsum(1) - padded
    columns = dim if sharing == "shared" else int(padded.sum(1).max())
    column = torch.arange(columns)
    return (column >= first[..., None]) & (column < (first + padded)[..., None])


def _places(reads: Tensor, dim: int) -> Tensor:
    """(F, N, K, D) one-hot: the coordinate to which a candidate copies each column that it reads."""
    position = reads.long().cumsum(2) - 1  # the j-th column that a candidate reads goes to coordinate j
    return (position[..., None] == torch.arange(dim)) & reads[..., None]
