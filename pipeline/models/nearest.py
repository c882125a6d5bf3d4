"""The items whose vectors have the largest inner products with a query: what a search does, and the exact one."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.models.retriever import NotFinite

TOGETHER = 512  # queries whose scores of all items are in memory at a time
LeftOut = tuple[np.ndarray, np.ndarray]  # a query (n,) and an item (n,) that it must not find; by query, then ascending


class Search(Protocol):
    """Finds items by their vectors."""

    def __call__(self, queries: Tensor, items: Tensor, left_out: LeftOut, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best items of each query, or all items if they are fewer.

        Args:
            queries: (B, K).
            items: (I, K), the same in every call.
            left_out: pairs of a query's position and an item.
            k: most items of a query.

        Returns:
            (B, min(k, I)) int32 numbers of items, the best first, -1 where fewer are left; and their scores, float32.

        Raises:
            NotFinite: if a score is not finite.
        """


def nearest(queries: Tensor, items: Tensor, left_out: LeftOut, k: int) -> tuple[np.ndarray, np.ndarray]:
    """See `Search`; scores all items, for `TOGETHER` queries at a time."""
    (at, number), found = left_out, []
    for first in range(0, len(queries), TOGETHER):
        scores = queries[first : first + TOGETHER] @ items.T
        if not bool(scores.isfinite().all()):
            raise NotFinite("a score of the model is not finite")
        begin, end = np.searchsorted(at, (first, first + len(scores)))
        own = torch.from_numpy(at[begin:end] - first), torch.from_numpy(number[begin:end])
        scores[own[0].to(scores.device), own[1].to(scores.device)] = -torch.inf
        top = scores.topk(min(k, scores.shape[1]), dim=1)
        numbers = torch.where(top.values.isfinite(), top.indices, -1).int()
        found.append((numbers.cpu().numpy(), top.values.float().cpu().numpy()))
    return np.concatenate([numbers for numbers, _ in found]), np.concatenate([scores for _, scores in found])
