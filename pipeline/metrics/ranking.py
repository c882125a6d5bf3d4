"""Metrics of ranked items: how many of a query's targets stand among its first k items, and how far up.

Recall is that of LightGCN (He et al. 2020), the share of *all* targets, also where there are more than k of them. NDCG
has gains of 0 and 1 (Järvelin, Kekäläinen 2002, Cumulated gain-based evaluation of IR techniques). On LightGCN's
protocol, where a query holds all test items of a user, both equal what its code computes.

All metrics have one value per query, so that means over queries, groups and users can be taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.data.interactions import ITEM_COLUMN, QUERY, REPEAT, USER_COLUMN

GROUPS_AT = 20  # the first items that `by_group` judges
BANDS = ("head", "middle", "tail")  # of popularity; items of each have a third of the training rows
LENGTHS = {"history 0": 0, "history 1-4": 1, "history 5-19": 5, "history 20+": 20}  # name -> the shortest history


@dataclass(frozen=True, eq=False)
class Queries:
    """The Q queries of a part, and the n distinct items that answer them, their targets.

    Args:
        first: (Q,) int64, the first row of each query.
        users: (Q,) int64, who asks.
        starts: (Q + 1,) int64; the targets of query q are ``items[starts[q]:starts[q + 1]]``.
        items: (n,) int64 item numbers, ascending in each query.
        repeats: (n,) bool, whether the user had interacted with the target before.
    """

    first: np.ndarray
    users: np.ndarray
    starts: np.ndarray
    items: np.ndarray
    repeats: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray) -> Queries:
        """The queries of the rows (n, C) of one part; see `pipeline.data.interactions`.

        Raises:
            ValueError: if a query is torn apart, or has two users.
        """
        query, users, items = (rows[:, column].astype(np.int64) for column in (QUERY, USER_COLUMN, ITEM_COLUMN))
        begins = np.diff(query, prepend=query[:1] - 1) != 0
        first, number = np.flatnonzero(begins), np.cumsum(begins) - 1
        names, runs = np.unique(query[first], return_counts=True)
        if (runs > 1).any():
            raise ValueError(f"the rows of a query must follow each other, and those of {names[runs > 1][0]} do not")
        other = np.flatnonzero(users != users[first][number])
        if len(other):
            row = other[0]
            raise ValueError(
                f"a query must have one user, got {users[first][number][row]} and {users[row]} in query {query[row]}"
            )
        order = np.lexsort((items, number))
        number, items, repeats = number[order], items[order], rows[:, REPEAT][order] != 0
        distinct = np.ones(len(items), bool)
        distinct[1:] = (np.diff(number) != 0) | (np.diff(items) != 0)
        starts = np.searchsorted(number[distinct], np.arange(len(first) + 1))
        return cls(first, users[first], starts, items[distinct], repeats[distinct])

    def __len__(self) -> int:
        return len(self.first)

    @property
    def sizes(self) -> np.ndarray:
        """(Q,) number of targets, at least 1."""
        return np.diff(self.starts)

    @property
    def owners(self) -> np.ndarray:
        """(n,) the query of each target."""
        return np.repeat(np.arange(len(self)), self.sizes)

    def places(self, top: np.ndarray) -> np.ndarray:
        """(Q, k) int64: where each ranked item stands in ``items``; -1 if it is no target of the query.

        Args:
            top: (Q, k) the items ranked for each query, all different, best first; -1 where there is none.

        Raises:
            ValueError: if there is not one row of ``top`` for each query.
        """
        if top.ndim != 2 or len(top) != len(self):
            raise ValueError(f"top must have one row for each of {len(self)} queries, got shape {top.shape}")
        width = 1 + max(self.items.max(initial=-1), top.max(initial=-1))
        keys = self.owners * width + self.items
        ranked = np.arange(len(self))[:, None] * width + top
        place = np.minimum(np.searchsorted(keys, ranked), len(keys) - 1)
        return np.where((top >= 0) & (keys[place] == ranked), place, -1)

    def hits(self, top: np.ndarray) -> np.ndarray:
        """(Q, k) bool: whether each ranked item is a target; see `places`."""
        return self.places(top) >= 0


def recall(hits: np.ndarray, sizes: np.ndarray, k: int) -> np.ndarray:
    """(Q,) share of the targets that are among the first k items.

    Args:
        hits: (Q, at least k) bool, see `Queries.hits`.
        sizes: (Q,) number of targets, at least 1.
        k: number of items.

    Raises:
        ValueError: if ``hits`` has fewer than k columns.
    """
    return _first(hits, k).sum(axis=1) / sizes


def ndcg(hits: np.ndarray, sizes: np.ndarray, k: int) -> np.ndarray:
    """(Q,) normalised discounted cumulative gain of the first k items; the ideal has min(k, targets) hits at its top.

    Args:
        hits, sizes, k: see `recall`.

    Raises:
        ValueError: if ``hits`` has fewer than k columns.
    """
    discounts = 1 / np.log2(np.arange(2, k + 2))
    return _first(hits, k) @ discounts / np.cumsum(discounts)[np.minimum(sizes, k) - 1]


def reciprocal_rank(hits: np.ndarray) -> np.ndarray:
    """(Q,) 1 / the rank of the first hit; 0 where no item is a hit.

    Args:
        hits: (Q, at least 1) bool, see `Queries.hits`.
    """
    return hits.any(axis=1) / (1 + hits.argmax(axis=1))


def coverage(top: np.ndarray, items: int, k: int) -> float:
    """The share of the catalogue that is among the first k items of any query.

    Args:
        top: (Q, at least k), see `Queries.places`.
        items: number of items in the catalogue.
        k: number of items.

    Raises:
        ValueError: if ``top`` has fewer than k columns.
    """
    shown = np.unique(_first(top, k))
    return float((shown >= 0).sum() / items)


def influence(values: np.ndarray, users: np.ndarray) -> np.ndarray:
    """The influence (n,) of each user on the mean of ``values``: sum(influence**2) / n**2 is the variance of the mean.

    The queries of a user are not independent, so the unit is the user, in ascending order of their numbers. The mean is
    a ratio of two sums over users, of the values and of the queries; the influence is the linear one of a ratio
    (Cochran 1977, Sampling Techniques, section 6.3), with the factor sqrt(n / (n - 1)). The influences have mean 0;
    that of a single user is NaN, because one user does not tell how much users vary.

    Args:
        values: (Q,) of a metric.
        users: (Q,) who asked.
    """
    each, number = np.unique(users, return_inverse=True)
    n = len(each)
    excess = np.bincount(number, weights=values - values.mean(), minlength=n)
    return excess * (n / len(values) * ((n / (n - 1)) ** 0.5 if n > 1 else float("nan")))


def by_group(
    top: np.ndarray, queries: Queries, counts: np.ndarray, lengths: np.ndarray
) -> dict[str, dict[str, float | int]]:
    """Recall and NDCG of the first `GROUPS_AT` items, for groups of targets.

    The ranking is that of all items, but only targets of the group count, in queries that have some. The groups:

    * ``all``;
    * ``repeat``, ``new``: the user had interacted with the target before, or not; ``cold``: no training row has it;
    * ``head``, ``middle``, ``tail``: popularity. The items with more training rows than the target have less than one
      third of all training rows together, less than two thirds, or more. Cold items belong to the tail;
    * ``history 0``, ``history 1-4``, ``history 5-19``, ``history 20+``: length of the query's history.

    Args:
        top: (Q, at least `GROUPS_AT`), see `Queries.places`.
        queries: of the part.
        counts: (I,) training rows with each item.
        lengths: (Q,) known interactions of the user, see `pipeline.data.interactions`.

    Returns:
        Name of each group that has targets -> number of its ``queries`` and ``targets``, mean ``recall_20`` and
        ``ndcg_20`` over its queries.

    Raises:
        ValueError: if ``top`` has fewer than `GROUPS_AT` columns.
    """
    groups: dict[str, dict[str, float | int]] = {}
    for name, asked, hits, sizes in _members(top, queries, counts, lengths):
        groups[name] = {
            "queries": int(asked.sum()),
            "targets": int(sizes.sum()),
            f"recall_{GROUPS_AT}": float(recall(hits, sizes, GROUPS_AT).mean()),
            f"ndcg_{GROUPS_AT}": float(ndcg(hits, sizes, GROUPS_AT).mean()),
        }
    return groups


def influence_by_group(
    top: np.ndarray, queries: Queries, counts: np.ndarray, lengths: np.ndarray
) -> dict[str, np.ndarray]:
    """The influence of each user on the recall of each group of `by_group`; see `influence`. Users without queries in
    the group have none."""
    return {
        name: influence(recall(hits, sizes, GROUPS_AT), queries.users[asked])
        for name, asked, hits, sizes in _members(top, queries, counts, lengths)
    }


def _members(
    top: np.ndarray, queries: Queries, counts: np.ndarray, lengths: np.ndarray
) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """Each group that has targets: its name, which queries have some (Q,), and for these queries the hits that count
    (q, `GROUPS_AT`) and the number of targets (q,)."""
    places, owners = queries.places(_first(top, GROUPS_AT)), queries.owners
    cold, bands = counts[queries.items] == 0, _bands(counts)[queries.items]
    known = np.searchsorted(list(LENGTHS.values()), lengths, side="right")[owners] - 1
    members = {
        "all": np.ones(len(owners), bool),
        "repeat": queries.repeats,
        "new": ~queries.repeats,
        "cold": cold,
        **{name: bands == band for band, name in enumerate(BANDS)},
        **{name: known == length for length, name in enumerate(LENGTHS)},
    }
    for name, member in members.items():
        sizes = np.bincount(owners[member], minlength=len(queries))
        asked = sizes > 0
        if asked.any():
            yield name, asked, ((places >= 0) & member[places])[asked], sizes[asked]


def _bands(counts: np.ndarray) -> np.ndarray:
    """(I,) the band of each item, an index of `BANDS`; items of equal counts are in the same one."""
    values, of = np.unique(counts, return_inverse=True)
    rows = np.bincount(of, minlength=len(values)) * values
    above = rows.sum() - np.cumsum(rows)  # training rows of the items that have more
    return (np.searchsorted([1 / 3, 2 / 3], above / max(1, rows.sum()), side="right"))[of]


def _first(array: np.ndarray, k: int) -> np.ndarray:
    if not 1 <= k <= array.shape[1]:
        raise ValueError(f"k must be from 1 to {array.shape[1]}, the number of ranked items, got {k}")
    return array[:, :k]
