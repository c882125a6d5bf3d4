"""All references, each with its options chosen on ``val``, and what they rank on ``test``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from pipeline.data.interactions import ITEM_COLUMN, USER_COLUMN, Columns, Interactions, Pairs
from pipeline.data.split import Split
from pipeline.metrics.ranking import Queries, ndcg, recall
from pipeline.references import ease, gf_cf, item_knn, last_bought, popularity
from pipeline.references.reference import Scorer
from pipeline.workflow.progress import progress, ticking

REFERENCES: Mapping[str, Any] = {  # name -> the file; see `pipeline.references.reference.Contract`
    "popularity": popularity,
    "last_bought": last_bought,
    "item_knn": item_knn,
    "ease": ease,
    "gf_cf": gf_cf,
}
JUDGED = 20  # the first items whose recall chooses the options
LISTED = 100  # items that are ranked for each query of test
_CELLS = 2**24  # scores in memory at a time


@dataclass(frozen=True, eq=False)
class Chosen:
    """A reference with the options that have the best recall on ``val``.

    Args:
        options: of its ``fit``.
        val: mean ``recall_20`` and ``ndcg_20`` over the queries of ``val``.
        top: (Q, `LISTED`) int32 items for the queries of ``test``, best first; -1 where there is none.
    """

    options: Mapping[str, Any]
    val: Mapping[str, float]
    top: np.ndarray


def left_out(num_items: int, history: int) -> dict[str, str]:
    """The references that do not suit the data, by name, with the reason.

    Args:
        num_items: I.
        history: H, see `Columns`.
    """
    reasons = {}
    for name, module in REFERENCES.items():
        reason = module.unsuited(num_items, history) if hasattr(module, "unsuited") else None
        if reason is not None:
            reasons[name] = reason
    return reasons


def results(
    training: Split, val: Split, test: Split, *, seen_val: Pairs | None = None, seen_test: Pairs | None = None
) -> dict[str, Chosen]:
    """The references that suit the data, by name.

    Each is fitted to the pairs of ``training`` once for every entry of its grid. The one with the best recall_20 on
    ``val``, the first of equals, ranks the items for ``test``. Equal scores are ranked by popularity in training, then
    by number.

    Args:
        training: the rows that models are trained on.
        val, test: one part each.
        seen_val, seen_test: items that are not to be shown to a user, e.g. the training pairs; None for a log where
            users come back to their items.

    Raises:
        ValueError: if ``val`` or ``test`` has no rows, or the rows are no interactions.
    """
    shared = training.interactions
    if shared is None:
        raise ValueError("references need rows that are interactions, and these are not")
    num_items = len(shared.items)
    known = _pairs(training, shared)
    order = _by_popularity(known, num_items)
    chooses = _Asked.of(val, shared.columns, known, seen_val, order)
    ranks = _Asked.of(test, shared.columns, known, seen_test, order)
    omitted = left_out(num_items, shared.columns.history)
    suited = {name: module for name, module in REFERENCES.items() if name not in omitted}
    rankings = sum(len(module.GRID) for module in suited.values())
    total = rankings * len(chooses.queries) + len(suited) * len(ranks.queries)
    chosen = {}
    with ticking(progress(total=total, unit="query", desc="references")) as bar:
        for name, module in suited.items():
            bar.set_description(name, refresh=False)
            best: tuple[Mapping[str, float], Mapping[str, Any], Scorer] | None = None
            for options in module.GRID:
                scorer = module.fit(known, num_items, **options)
                metrics = _metrics(chooses.ranked(scorer, JUDGED, bar), chooses.queries)
                if best is None or metrics[f"recall_{JUDGED}"] > best[0][f"recall_{JUDGED}"]:
                    best = metrics, options, scorer
            if best is not None:
                chosen[name] = Chosen(best[1], best[0], ranks.ranked(best[2], LISTED, bar))
    return chosen


def top_items(scores: np.ndarray, k: int, order: np.ndarray) -> np.ndarray:
    """(q, k) int32: the k items of the highest scores, best first; -1 in place of items that score -inf.

    Args:
        scores: (q, I) float32, no NaN.
        k: number of items; there may be fewer.
        order: (I,) all items; of equal scores, the item that comes first in it is the better one.
    """
    number = scores.shape[1]
    rank = np.empty(number, np.int64)
    rank[order[::-1]] = np.arange(number)
    keys = _ordered(scores).astype(np.int64)  # the score in the upper 32 bits, the rank below: all keys are different
    keys <<= 32
    keys |= rank
    kept = min(k, number)
    keys.partition(number - kept, axis=1)
    keys = np.sort(keys[:, number - kept :], axis=1)[:, ::-1]
    top = np.full((len(scores), k), -1, np.int32)
    none = int(_ordered(np.full(1, -np.inf, np.float32))[0])
    top[:, :kept] = np.where(keys >> 32 == none, -1, order[::-1][keys & 0xFFFFFFFF])
    return top


def _ordered(scores: np.ndarray) -> np.ndarray:
    """int32 numbers in the order of the float32 scores."""
    bits = (scores + np.float32(0)).view(np.int32)  # the sum turns -0 into 0
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@dataclass(frozen=True, eq=False)
class _Asked:
    """The queries of a part, and what is known of those who ask.

    Args:
        queries: of the part.
        histories: (Q, H) items, see `pipeline.data.interactions`.
        known: pairs of training.
        seen: items that are not to be shown; None for no such items.
        order: (I,) items by popularity.
    """

    queries: Queries
    histories: np.ndarray
    known: Pairs
    seen: Pairs | None
    order: np.ndarray

    @classmethod
    def of(cls, split: Split, columns: Columns, known: Pairs, seen: Pairs | None, order: np.ndarray) -> _Asked:
        if not len(split):
            raise ValueError(f"references need at least 1 row of {' and '.join(split.parts) or 'val and test'}, got 0")
        rows = split.slice(0, len(split))[0]
        queries = Queries.of(rows)
        return cls(queries, columns.of_history(rows)[queries.first], known, seen, order)

    def ranked(self, scorer: Scorer, k: int, bar: Any) -> np.ndarray:
        """(Q, k) int32 items, best first; see `top_items`."""
        queries = len(self.queries)
        top = np.empty((queries, k), np.int32)
        step = max(1, _CELLS // len(self.order))
        for start in range(0, queries, step):
            users, histories = self.queries.users[start : start + step], self.histories[start : start + step]
            scores = scorer.scores(_profiles(self.known, users, histories, len(self.order)), histories)
            if self.seen is not None:
                scores[self.seen.of_users(users)] = -np.inf
            top[start : start + step] = top_items(scores, k, self.order)
            bar.update(len(users))
        return top


def _profiles(known: Pairs, users: np.ndarray, histories: np.ndarray, num_items: int) -> sparse.csr_array:
    """(q, I) float32: 1 for each item of training or of the history, see `Scorer.scores`."""
    queries, items = known.of_users(users)
    of_history = histories >= 0
    queries = np.concatenate([queries, np.nonzero(of_history)[0]])
    items = np.concatenate([items, histories[of_history]])
    ones = np.ones(len(items), np.float32)
    profiles = sparse.csr_array((ones, (queries, items)), shape=(len(users), num_items))  # sums what is there twice
    profiles.data[:] = 1
    return profiles


def _pairs(training: Split, shared: Interactions) -> Pairs:
    users, items = (np.concatenate([ids[:, column] for ids in training.ids]) for column in (USER_COLUMN, ITEM_COLUMN))
    return Pairs.of(users, items, len(shared.users), len(shared.items))


def _by_popularity(known: Pairs, num_items: int) -> np.ndarray:
    return np.argsort(-np.bincount(known.items, minlength=num_items), kind="stable")


def _metrics(top: np.ndarray, queries: Queries) -> dict[str, float]:
    hits, sizes = queries.hits(top), queries.sizes
    metrics = {f"recall_{JUDGED}": recall(hits, sizes, JUDGED), f"ndcg_{JUDGED}": ndcg(hits, sizes, JUDGED)}
    return {name: float(values.mean()) for name, values in metrics.items()}
