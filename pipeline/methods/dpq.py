"""DPQ. Chen, Li & Sun 2020, "Differentiable Product Quantization for End-to-End Embedding Compression", ICML."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.evidence import Evidence
from pipeline.data.schema import Schema
from pipeline.embeddings.contract import FieldEmbedding
from pipeline.embeddings.mixed import MixedTables
from pipeline.embeddings.product_codes import (
    OFFERED,
    NearestCentroids,
    ProductQuantised,
    check_dims,
    decode,
    divisors,
    finest,
)
from pipeline.embeddings.table import INIT_SD
from pipeline.workflow.plug import Least

search = None
MOST_SX = 32  # centroids that sx is offered: its step computes and keeps all u G K products of a batch, vx's does not
EPS, MOMENTUM = 1e-10, 0.1  # of the normalisation; queries are small, and so are the variances of their products


class SoftmaxCentroids(ProductQuantised):
    """DPQ-SX: a query chooses its centroids by softmax over products with keys; what is served are values beside them.

    Section 3.1: r_k = <q, K_k>, normalised over the batch without affine, p = softmax(r / temperature), c = argmax p,
    out = V_c. In the backward pass p stands for the choice: with P = p - sg(p - onehot(c)), out = P V.

    NOTE[DIFF]: the batch of the normalisation are its distinct rows, as for `NearestCentroids`.

    A group of one coordinate has but two normalised products, one for keys above 0 and one for those below: groups must
    be wider.
    """

    def __init__(self, schema: Schema, dim: int, *, groups: int, centroids: list[int], temperature: float) -> None:
        if groups == dim:
            raise ValueError(f"dpq with variant sx needs groups of two coordinates or more, however: {groups=}, {dim=}")
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, however: {temperature=}")
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
        found = decode(logits.argmax(2).T, self.values)
        if not torch.is_grad_enabled():
            return found
        soft = torch.softmax(logits / self.temperature, 2) @ self.values.detach()
        soft = soft.transpose(0, 1).reshape(queries.shape)
        return found + (soft - soft.detach())


def derive(
    given: Evidence,
    *,
    variant: Literal["vx", "sx"] = "vx",
    groups: Annotated[int, Least(1)] | None = None,
    centroids: Annotated[int, Least(2)] | None = None,
    commitment: Annotated[float, Least(0)] = 0.0,
    temperature: float = 1.0,
) -> Allocation:
    """The finest codes within the limit.

    Args:
        variant: "vx": nearest centroids; "sx": softmax over keys.
        groups: G, a divisor of D; None: what the limit allows.
        centroids: K; None: what the limit allows.
        commitment: of vx; see `NearestCentroids`.
        temperature: of sx; see `SoftmaxCentroids`.
    """
    own = {"commitment": commitment} if variant == "vx" else {"temperature": temperature}
    most = given.dim if variant == "vx" else max(1, given.dim // 2)
    numbers = OFFERED if variant == "vx" else [k for k in OFFERED if k <= MOST_SX]
    dims = dict.fromkeys(given.schema.names, given.dim)
    offered = [
        Allocation("dpq", dims, {"variant": variant, "groups": g, "centroids": [k], **own})
        for g in (divisors(given.dim, most) if groups is None else [groups])
        for k in (numbers if centroids is None else [centroids])
    ]
    return finest(given, build, offered)


def build(schema: Schema, dim: int, allocation: Allocation) -> FieldEmbedding:
    settings = dict(allocation.settings)
    if not settings:
        return MixedTables(schema, allocation.dims, dim)
    check_dims(allocation, dim)
    made = {"vx": NearestCentroids, "sx": SoftmaxCentroids}[settings.pop("variant")]
    return made(schema, dim, **settings)
