"""MEC: model-agnostic embedding compression, 2025, arXiv 2502.15355.

A model with full tables is trained (the search). Its vectors are product-quantised, and frequent values count more in
the fit. The final model keeps the codes as they are, and trains the codewords together with a fresh backbone.

NOTE[DIFF]: the paper fits codewords by an autoencoder. In the authors' code the encoder gets no gradient and stays a
random projection, the decoder is dropped after the fit, and the regulariser on the use of codewords has no gradient;
what acts is that a value is repeated floor(log2 count) times. Here k-means with these weights minimises the weighted
squared error itself. There is no contrastive term: in the authors' code all values of a batch have the same negative.
NOTE[DIFF]: the paper codes fields with at least 100,000 values, each with codebooks of its own. Here fields with more
than K values are coded. By default they share the codebooks, because several would take most of a small budget; see
`pipeline.embeddings.product_codes`.
NOTE[DIFF]: the codes are counted, with ceil(log2 K) bits each. The paper counts trained numbers only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.evidence import Evidence, Problem
from pipeline.data.schema import Schema
from pipeline.embeddings.batch import Occurrences
from pipeline.embeddings.contract import Findings
from pipeline.embeddings.frequency import training_counts
from pipeline.embeddings.k_means import RowWeights, k_means, row_weights
from pipeline.embeddings.mixed import MixedTables
from pipeline.embeddings.product_codes import (
    OFFERED,
    Centroids,
    ProductQuantised,
    check_dims,
    check_groups,
    closest,
    divisors,
    finest,
)
from pipeline.workflow.validation import Count

Books = Literal["shared", "field"]


class Source(MixedTables):
    """Full tables whose trained vectors are what is coded.

    Args:
        schema, dim: of `MixedTables`.
        counts: (R,) occurrences of each row in training.
    """

    keeps_best = True

    def __init__(self, schema: Schema, dim: int, counts: np.ndarray) -> None:
        super().__init__(schema, dict.fromkeys(schema.names, dim), dim)
        self.counts = counts

    def findings(self) -> Findings:
        return Findings(arrays=self._found)

    def _found(self) -> dict[str, np.ndarray]:
        """``vectors`` (R, D) float32 and ``counts`` (R,) int64."""
        table = self.tables[str(self.dim)].get_parameter("weight").detach()
        return {"vectors": table.cpu().numpy().copy(), "counts": self.counts}


class Codewords(ProductQuantised):
    """Product codes that are known before training; the codewords and the table of small fields are trained.

    Args:
        schema, dim, groups, centroids: of `ProductQuantised`.
        books: "shared": one codebook for each group of coordinates; "field": one for each coded field and group.
        codes: (n, G) of the coded rows; None where only sizes matter.
        book: (G, K, D / G) first codewords, or (C, G, K, D / G) for C coded fields; None likewise.
    """

    def __init__(
        self,
        schema: Schema,
        dim: int,
        *,
        groups: int,
        centroids: Sequence[int],
        books: Books = "shared",
        codes: np.ndarray | None = None,
        book: np.ndarray | None = None,
    ) -> None:
        super().__init__(schema, dim, groups=groups, centroids=centroids, fixed=True)
        if not self.tiers:
            return
        empty = torch.zeros(*([len(self.tiers)] if books == "field" else []), groups, max(centroids), dim // groups)
        self.book = nn.Parameter(empty if book is None else torch.tensor(book))
        if codes is not None:
            chosen = torch.tensor(codes.astype(np.int64))
            for segment, part in enumerate(chosen.split(self.codes.numbers)):
                self.codes.write(segment, 0, part)

    def books(self) -> Tensor:
        return self.book

    def vectors(self, occ: Occurrences) -> Tensor:
        data, book = (self.codes.data, self.book) if self.tiers else (None, None)
        return self._decoded(self.table, data, book, occ)

    def decoded(self, codes: Tensor, books: Tensor, segments: Tensor) -> Tensor:
        if books.dim() == 3:
            return super().decoded(codes, books, segments)
        groups = torch.arange(self.groups, device=codes.device)
        return books[segments[:, None], groups, codes].flatten(1)

    def finish(self) -> None:
        """Nothing is left to do: the codes are fixed, and codewords are stored as they were trained."""


def find(problem: Problem) -> Source:
    """The full tables that are coded after their training.

    Raises:
        ValueError: if there are no training ids.
    """
    return Source(problem.schema, problem.dim, training_counts(problem))


check = check_groups  # of its options


def derive(
    evidence: Evidence,
    *,
    groups: Count | None = None,
    centroids: Centroids | None = None,
    weights: RowWeights = "log2",
    books: Books = "shared",
) -> Allocation:
    """The finest codes within the limit, and the codewords that fit the vectors of the search best.

    Args:
        groups: G, a divisor of D; None: the best that the limit allows. 4 in the paper.
        centroids: K; None: the best that the limit allows. 256 to 2048 in the paper.
        weights: how much a value counts in the fit; see `row_weights`.
        books: whether coded fields share the codebooks, or have their own ("field"), as in the paper.
    """
    allocation = finest(
        evidence,
        build,
        divisors(evidence.dim) if groups is None else [groups],
        [[k] for k in (OFFERED if centroids is None else [centroids])],
        {"books": books},
    )
    with torch.device("meta"):
        sized = build(evidence.schema, evidence.dim, allocation)
    rows = torch.from_numpy(sized.coded_rows)
    if not len(rows):
        return allocation
    vectors = torch.tensor(evidence.arrays["vectors"])[rows]
    weight = row_weights(torch.tensor(evidence.arrays["counts"]).float()[rows], weights)
    chosen, (number,) = allocation.settings["groups"], allocation.settings["centroids"]
    fitted, codes = [], []
    parts = sized.codes.numbers if books == "field" else [len(vectors)]
    masses = [None] * len(parts) if weight is None else list(weight.split(parts))
    for part, mass in zip(vectors.split(parts), masses, strict=True):
        fitted.append(k_means(part, chosen, number, seed=evidence.seed, weights=mass))
        codes.append(closest(part, fitted[-1]))
    book = torch.stack(fitted) if books == "field" else fitted[0]
    kind = np.uint8 if number <= 256 else np.uint16
    return replace(allocation, arrays={"codes": torch.cat(codes).numpy().astype(kind), "book": book.numpy()})


def build(schema: Schema, dim: int, allocation: Allocation) -> Codewords:
    check_dims(allocation, dim)
    arrays: Any = allocation.arrays  # together with the settings, all keywords
    return Codewords(schema, dim, **allocation.settings, **arrays)
