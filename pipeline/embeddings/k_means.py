"""Centroids of the rows of a table, group of coordinates by group, with a weight for each row."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from pipeline.embeddings.product_codes import closest

PER_CENTROID = 256  # the most vectors in the fit, per centroid
ITERATIONS = 25  # of Lloyd's algorithm

RowWeights = Literal["none", "log2", "share"]  # the option for the weights of the rows in the fit


def row_weights(counts: Tensor, kind: RowWeights) -> Tensor | None:
    """The weight of each row in a fit, from how often it occurs in training: (n,) -> (n,), or None for equal weights.

    Args:
        counts: (n,) occurrences.
        kind: "none": equal weights. "log2": max(1, floor(log2 count)), the repetitions in the code of MEC (arXiv
            2502.15355). "share": proportional to the count; a row that does not occur counts as half an occurrence.
    """
    if kind == "none":
        return None
    return counts.clamp(min=2).log2().floor() if kind == "log2" else counts.clamp(min=0.5)


@torch.no_grad()
def k_means(
    vectors: Tensor,
    groups: int,
    number: int,
    iterations: int = ITERATIONS,
    seed: int = 0,
    weights: Tensor | None = None,
) -> Tensor:
    """Centroids (G, K, D / G), fitted to vectors group by group.

    Lloyd's algorithm on at most `PER_CENTROID` * K vectors. It starts from K vectors drawn at random. A centroid that
    is nearest to no vector moves to a vector drawn at random. With weights, the vectors that start the algorithm are
    drawn in proportion to them, and a centroid is a weighted mean.

    Args:
        vectors: (n, D), n at least K.
        groups: G.
        number: K.
        iterations: of the algorithm.
        seed: of the draws.
        weights: (n,) above 0; None if all are equal.
    """
    generator = torch.Generator().manual_seed(seed)

    def drawn(most: int, weights: Tensor | None = None) -> Tensor:
        if weights is None:
            return torch.randperm(len(vectors), generator=generator)[:most].to(vectors.device)
        # The largest keys are a draw in proportion to the weights, without replacement (Efraimidis & Spirakis 2006).
        keys = torch.rand(len(vectors), generator=generator).clamp_(min=1e-30).log() / weights.cpu()
        return keys.topk(min(most, len(vectors))).indices.to(vectors.device)

    books = vectors[drawn(number, weights)].view(number, groups, -1).transpose(0, 1).contiguous()
    some = drawn(PER_CENTROID * number)
    vectors, masses = vectors[some], vectors.new_ones(len(some)) if weights is None else weights.to(vectors)[some]
    grouped = vectors.view(len(vectors), groups, -1).transpose(0, 1)  # (G, n, D / G)
    mass = masses.expand(groups, -1)
    for _ in range(iterations):
        codes = closest(vectors, books).T.contiguous()  # (G, n)
        counts = torch.zeros_like(books[..., 0]).scatter_add_(1, codes, mass)
        sums = torch.zeros_like(books).scatter_add_(1, codes[..., None].expand_as(grouped), grouped * masses[:, None])
        books = sums / torch.where(counts > 0, counts, 1)[..., None]
        group, empty = (counts == 0).nonzero().T
        replaced_by = torch.randint(len(vectors), group.shape, generator=generator).to(group.device)
        books[group, empty] = grouped[group, replaced_by]
    return books
