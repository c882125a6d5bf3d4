"""Soft selection among candidate dimensions: the paper's supernet, folded into one affine map per field.

Written out, AutoDim's search takes the first d_n coordinates of a field's vector for every candidate n, maps
them to D coordinates, normalises each by BatchNorm without affine, and adds the N results with weights p_n.
BatchNorm of a linear map depends on the batch only through the mean mu (K,) and covariance C (K, K) of the
field's vector, so all of it is one matrix per field,

    T = sum_n p_n * W_n * rsqrt(diag(W_n^T C W_n) + eps),      x = (e - mu) T,

with W_n zero outside the coordinates that candidate n may read. T is applied to the distinct rows of the batch
before they are spread over it. Outputs, gradients and running statistics equal the written-out form's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from pipeline.data.schema import Schema
from pipeline.embeddings.batch import Occurrences, spread
from pipeline.embeddings.table import Table, field_of, field_sums, grouped_matmul, grouped_outer

EPS = 1e-5  # BatchNorm's defaults
MOMENTUM = 0.1
Sharing = Literal["shared", "separate"]
Unification = Literal["linear", "padding"]
Transform = Literal["field", "global"]
Gain = Literal["field", "none"]


class _Moments(torch.autograd.Function):
    """Mean and covariance of each field's vector over a batch, from its distinct rows, and the rows less their mean.

    Args:
        rows: (U, K), rows of one field standing together.
        mass: (U,) share of the batch that each row stands for; those of a field add up to 1.
        ends: (F,) int32, where each field's rows end.

    Returns:
        centred (U, K), mean (F, K), covariance (F, K, K). The mean takes no gradient.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, rows: Tensor, mass: Tensor, ends: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        fields = field_of(ends, len(rows))
        mean = field_sums(rows, ends, mass)
        centred = rows - mean.index_select(0, fields)
        covariance = grouped_outer(centred * mass[:, None], centred, ends)
        ctx.save_for_backward(centred, mass, ends, fields)  # type: ignore[attr-defined]
        ctx.mark_non_differentiable(mean)
        return centred, mean, covariance

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any, grad_covariance: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        """The covariance does not depend on the mean, for the centred rows add up to 0."""
        centred, mass, ends, fields = ctx.saved_tensors
        through = grouped_matmul(centred, grad_covariance + grad_covariance.transpose(1, 2), ends)
        through = through - field_sums(grad, ends).index_select(0, fields)
        return torch.addcmul(grad, through, mass[:, None]), None, None


class FoldedMixture(nn.Module):
    """Weight-shared or separate candidate embeddings, unified to D coordinates and mixed (design: module doc).

    Args:
        schema: F fields.
        candidates: for each field its candidate dims, ascending, at most ``dim``; 0 contributes nothing.
        dim: D.
        sharing: "shared": candidate n reads the first d_n columns of one table; "separate": its own columns.
        unification: "linear": a learned d_n x D map, then BatchNorm; "padding": BatchNorm, then zeros to D.
        transform: whether each field learns its own maps or all fields share one per candidate.
        gain: "field": the mixture is scaled by one learned number per field, starting at ``gain_init``;
            "none": as in the paper.

    NOTE[DIFF]: transform. The one source at hand says fields share the maps, the public implementations give
    each field its own, which also is what re-training builds; hence "field" by default.
    NOTE[DIFF]: gain. BatchNorm without affine gives each coordinate of every field unit variance, however
    useless the field, so FM's sum of F (F - 1) / 2 inner products starts at a standard deviation of about
    F sqrt(D / 2) and cannot shrink. One factor per field, common to its candidates, keeps them comparable,
    which is the paper's reason for the normalisation.
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
            raise ValueError(f"candidates for {len(candidates)} fields, however {len(schema)=}")
        too_wide = [dims for dims in candidates if dims[-1] > dim]
        if too_wide:
            raise ValueError(f"candidate dims must not exceed {dim=}, however: {too_wide[0]}")
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
        bags = torch.tensor(schema.widths > 1).nonzero()[:, 0]
        self.register_buffer("bag_fields", bags, persistent=False)
        self.register_buffer("mean", torch.zeros(fields, columns))
        self.register_buffer("covariance", torch.eye(columns).repeat(fields, 1, 1))

    reads: Tensor
    places: Tensor
    bag_fields: Tensor
    mean: Tensor
    covariance: Tensor

    def forward(self, occ: Occurrences, p: Tensor) -> Tensor:
        """Occurrences, mixture weights p (F, N) -> embedded (B, F, D)."""
        rows = self.table(occ.rows)  # (U, K)
        if self.training:
            centred, mean, covariance = _Moments.apply(rows, occ.mass() / occ.shape[0], occ.ends)
            if len(self.bag_fields):  # a bag's vector is the average of several rows
                bags = spread(centred, occ)[:, self.bag_fields].transpose(0, 1)
                covariance = covariance.index_copy(0, self.bag_fields, bags.transpose(1, 2) @ bags / occ.shape[0])
            self._track(mean, covariance, occ.shape[0])
        else:
            centred = rows - self.mean.index_select(0, field_of(occ.ends, len(rows)))
            covariance = self.covariance
        return spread(grouped_matmul(centred, self._folded(p, covariance), occ.ends), occ)

    @torch.no_grad()
    def _track(self, mean: Tensor, covariance: Tensor, batch: int) -> None:
        """Running moments as BatchNorm keeps them: unbiased, with momentum."""
        self.mean.lerp_(mean, self.momentum)
        self.covariance.lerp_(covariance * (batch / max(1, batch - 1)), self.momentum)

    def _folded(self, p: Tensor, covariance: Tensor) -> Tensor:
        """T (F, K, D) for mixture weights p (F, N) and covariance (F, K, K)."""
        if self.unification == "linear":
            fields, number = p.shape
            maps = self.maps * self.reads  # (F, N, K, D); what a candidate may not read is no parameter
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
        raise ValueError(f"{name} must be one of {list(allowed)}, however: {value!r}")


def _columns_read(candidates: Sequence[Sequence[int]], dim: int, sharing: Sharing) -> Tensor:
    """(F, N, K) bool: which columns of the table each candidate reads."""
    number = max(len(dims) for dims in candidates)
    padded = torch.tensor([[*dims, *[0] * (number - len(dims))] for dims in candidates])
    first = torch.zeros_like(padded) if sharing == "shared" else padded.cumsum(1) - padded
    columns = dim if sharing == "shared" else int(padded.sum(1).max())
    column = torch.arange(columns)
    return (column >= first[..., None]) & (column < (first + padded)[..., None])


def _places(reads: Tensor, dim: int) -> Tensor:
    """(F, N, K, D) one-hot: the coordinate that each column a candidate reads is put at."""
    position = reads.long().cumsum(2) - 1  # the j-th column read goes to coordinate j
    return (position[..., None] == torch.arange(dim)) & reads[..., None]
