"""DPQ. Chen, Li & Sun 2020, "Differentiable Product Quantization for End-to-End Embedding Compression", ICML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.evidence import Evidence
from pipeline.data.schema import Schema
from pipeline.embeddings.product_codes import (
    OFFERED,
    Centroids,
    NearestCentroids,
    ProductQuantised,
    check_dims,
    check_groups,
    decode,
    divisors,
    finest,
)
from pipeline.embeddings.table import INIT_SD
from pipeline.workflow.validation import Count, Positive, Rate

MOST_SX = 32  # centroids that sx tries at most, because it keeps all u G K products of a batch in memory; vx does not
EPS, MOMENTUM = 1e-10, 0.1  # of the normalisation; queries are small, and so are the variances of their products


class SoftmaxCentroids(ProductQuantised):
    """DPQ-SX: a query chooses centroids by softmax over its products with keys; the value of the chosen key is served.

    Section 3.1: r_k = <q, K_k>, normalised over the batch without affine, p = softmax(r / temperature), c = argmax p,
    out = V_c. In the backward pass p replaces the choice: with P = p - sg(p - onehot(c)), out = P V.

    NOTE[DIFF]: the normalisation is over the distinct rows of the batch, as in `NearestCentroids`.

    Groups of one coordinate are refused: their normalised products take only two values, one for positive keys and one
    for negative keys.

    Args:
        schema, dim, groups, centroids: of `ProductQuantised`.
        temperature: of the softmax.

    Raises:
        ValueError: if groups have only one coordinate.
    """

    def __init__(self, schema: Schema, dim: int, *, groups: int, centroids: list[int], temperature: float) -> None:
        if groups == dim:
            raise ValueError(f"dpq: variant sx needs groups of at least two coordinates, got {groups=} for {dim=}")
        super().__init__(schema, dim, groups=groups, centroids=centroids)
        self.temperature, self.momentum = temperature, MOMENTUM
        number = max(centroids)
        if self.queries is not None:
            self.keys = nn.Parameter(torch.randn(groups, number, dim // groups))
            self.values = nn.Parameter(INIT_SD * torch.randn(groups, number, dim // groups))
            self.register_buffer("mean", torch.zeros(groups, 1, number))
            self.register_buffer("variance", torch.ones(groups, 1, number))

    mean: Tensor
    variance: Tensor

    def books(self) -> Tensor:
        return self.values

    def logits(self, queries: Tensor) -> Tensor:
        """Queries (u, D) -> normalised products with the keys (G, u, K)."""
        products = queries.view(len(queries), self.groups, -1).transpose(0, 1) @ self.keys.transpose(1, 2)
        mean, variance = self.mean, self.variance
        if self.training:
            variance, mean = torch.var_mean(products, 1, correction=0, keepdim=True)
            self.mean.lerp_(mean.detach(), self.momentum)
            self.variance.lerp_(variance.detach(), self.momentum)
        return (products - mean) * torch.rsqrt(variance + EPS)

    def nearest(self, queries: Tensor, tier: int) -> Tensor:
        training = self.training
        try:
            return self.eval().logits(queries).argmax(2).T
        finally:
            self.train(training)

    def quantised(self, queries: Tensor, tiers: Tensor) -> Tensor:
        logits = self.logits(queries)
        chosen = decode(logits.argmax(2).T, self.values)
        if not torch.is_grad_enabled():
            return chosen
        soft = torch.softmax(logits / self.temperature, 2) @ self.values.detach()
        soft = soft.transpose(0, 1).reshape(queries.shape)
        return chosen + (soft - soft.detach())


def check(dim: int, options: Mapping[str, Any]) -> None:
    check_groups(dim, options)
    if options.get("variant") == "sx" and dim < 2:
        raise ValueError(f"variant sx needs two coordinates or more, and dim is {dim}")
    if options.get("variant") == "sx" and options.get("groups") == dim:
        raise ValueError(f"groups must be below {dim} with variant sx, whose groups need two coordinates, got {dim}")


def derive(
    evidence: Evidence,
    *,
    variant: Literal["vx", "sx"] = "vx",
    groups: Count | None = None,
    centroids: Centroids | None = None,
    commitment: Rate = 0.0,
    temperature: Positive = 1.0,
) -> Allocation:
    """The finest codes within the limit.

    Args:
        variant: "vx": nearest centroids; "sx": softmax over keys.
        groups: G, a divisor of D; None: the best that the limit allows.
        centroids: K; None: the best that the limit allows.
        commitment: of vx; see `NearestCentroids`.
        temperature: of sx; see `SoftmaxCentroids`.
    """
    vx, dim = variant == "vx", evidence.dim
    numbers = [k for k in OFFERED if vx or k <= MOST_SX] if centroids is None else [centroids]
    return finest(
        evidence,
        build,
        divisors(dim, dim if vx else max(1, dim // 2)) if groups is None else [groups],
        [[k] for k in numbers],
        {"variant": variant, **({"commitment": commitment} if vx else {"temperature": temperature})},
    )


def build(schema: Schema, dim: int, allocation: Allocation) -> ProductQuantised:
    check_dims(allocation, dim)
    settings = dict(allocation.settings)
    variants = {"vx": NearestCentroids, "sx": SoftmaxCentroids}
    return variants[settings.pop("variant")](schema, dim, **settings)
