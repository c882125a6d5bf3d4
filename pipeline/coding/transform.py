"""The coordinates in which a table is coded: a change of one coefficient costs loss by itself.

When row v of a table changes by d_v, the mean loss rises by about 1/2 sum_v w_v d_v^T G d_v. G is the Gauss-Newton
matrix of the loss in the vectors of the table, and w_v says how often row v is looked up. Let R = G^(1/2), and let
U S V^T be the singular value decomposition of diag(sqrt w) (E - mu) R. In the coefficients (E - mu) R V, the rise is a
sum over single numbers. This is transform coding (Goyal 2001, "Theoretical foundations of transform coding") with the
rise of the loss as the distortion.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FLOOR = 1e-3  # of the largest eigenvalue of G; smaller eigenvalues are raised to it, because G is an estimate
TINY = 1e-30
TOGETHER = 16_384  # rows that are added up together in float64
# Standard deviation of the coefficients. In a second training with Adam it sets how fast coefficients move beside the
# decoder; of 0.01 to 1, this value was the best on `val` of MovieLens-1M by far.
SD = 0.03


@dataclass(frozen=True)
class Transform:
    """A table as ``mean + coefficients @ decoder``.

    Args:
        mean: (D,) weighted mean of the rows.
        coefficients: (V, K), K = min(V, D); each of the K components has the weighted standard deviation `SD`, or is 0.
        decoder: (K, D), its rows by falling power.
        power: (K,) float64; an error e of a coefficient in row v raises the loss by about 1/2 w_v power e^2.
    """

    mean: Tensor
    coefficients: Tensor
    decoder: Tensor
    power: Tensor


def transform(table: Tensor, weights: Tensor, metric: Tensor) -> Transform:
    """The transform of a table.

    Args:
        table: (V, D) float32.
        weights: (V,) how often each row is looked up, at least 0; if all are 0, the rows count alike.
        metric: (D, D) the Gauss-Newton matrix G, symmetric and positive semidefinite.
    """
    shares = as_shares(weights)
    mean = shares @ table
    centred = table - mean
    values, vectors = torch.linalg.eigh(metric.double())
    values = values.clamp(min=max(FLOOR * float(values.max()), TINY))
    root = (vectors * values.sqrt()) @ vectors.T
    inverse = (vectors / values.sqrt()) @ vectors.T
    moment = torch.zeros_like(root)
    for part, of_part in zip(centred.split(TOGETHER), shares.split(TOGETHER), strict=True):
        moment += (part * of_part[:, None]).T.double() @ part.double()
    power, axes = torch.linalg.eigh(root @ moment @ root)
    first = power.argsort(descending=True)[: min(table.shape)]
    axes, power = axes[:, first], power[first].clamp(min=0)
    axes = axes * torch.where(axes.sum(0) < 0, -1.0, 1.0)  # `eigh` leaves the signs open
    kept = power > 1e-12 * power.max().clamp(min=TINY)
    sd = torch.where(kept, power, 0.0).sqrt()
    scale = torch.where(kept, SD / sd.clamp(min=TINY), 0.0)
    coefficients = centred @ (root @ axes * scale).to(table.dtype)
    decoder = (axes.T @ inverse) * (sd / SD)[:, None]
    return Transform(mean, coefficients, decoder.to(table.dtype), (sd / SD).square())


def as_shares(weights: Tensor) -> Tensor:
    """Weights (V,) scaled to sum 1; equal shares if all are 0."""
    total = weights.double().sum()
    if float(total) <= 0:
        return torch.full_like(weights, 1 / len(weights))
    return (weights.double() / total).to(weights.dtype)
