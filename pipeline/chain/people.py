"""What real users like, from the items that they interacted with.

Users are divided into two halves by a hash of their keys. Agents learn from sessions of the one half, ``learn``, and
are tested on the other, ``test``, whose likings come from another class of models:

* ``learn``: PureSVD (Cremonesi, Koren, Turrin 2010, "Performance of Recommender Algorithms on Top-N Recommendation
  Tasks", RecSys): the projection of a user's items on the largest singular vectors of the half's matrix;
* ``test``: the neighbourhood of items, `pipeline.references.item_knn`, of the test half's matrix.

The items' vectors, which agents see, are always those of ``learn``: the singular vectors times the square roots of the
singular values, at a mean length of 1.

Data: which user interacted with which item. Assumptions: a user's liking for an item is the normal score of the item's
rank among all items for the user, so users differ in what they like, not in how much; items that the user is known to
have are as welcome as the score says; how strongly liking moves the chances is the slope of a logistic regression that
tells the user's held-out items from random other ones.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.parquet as pq
import torch
from scipy import sparse
from scipy.sparse.linalg import svds
from scipy.special import ndtri
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from pipeline.data.encoded import Encoded
from pipeline.data.interactions import USER_KEYS_FILE, Interactions, Pairs
from pipeline.references import item_knn
from pipeline.references.reference import inverse_roots, matrix

Half = Literal["learn", "test"]
_MOST_CELLS = 2**28  # of a matrix of users and items, or of items and items; 1 GiB
_NEIGHBOURS, _SHRINKAGE = 100, 10.0
EACH, FACTORS, STRENGTH = 24, 6, 2.0  # of planted users: items of each, length of vectors, scale of their products


@dataclass(frozen=True, eq=False)
class People:
    """The users of a half.

    Args:
        liking: (U, I) float32 normal scores.
        slope: by how much a unit of liking moves the logit of taking an item.
        alike: (I, I) float32 similarities of items, from 0 to 1; 1 on the diagonal.
        vectors: (I, D) float32, the items as agents see them.
        starts, known: items of user u are ``known[starts[u]:starts[u + 1]]``, shuffled; at least one each.
        popularity: (I,) float64, users of each item.
    """

    liking: Tensor
    slope: float
    alike: Tensor
    vectors: Tensor
    starts: Tensor
    known: Tensor
    popularity: Tensor


@dataclass(frozen=True, eq=False)
class Known:
    """Which of U users interacted with which of I items.

    Args:
        place: where it comes from, for messages.
        halves: (U,) the half of each user.
        known: (U, I) 1 for the items from which likings are computed.
        held: (U, I) 1 for the items that give the slope.
    """

    place: str
    halves: np.ndarray
    known: sparse.csr_array
    held: sparse.csr_array


def encoded(folder: Path) -> Known:
    """Encoded interactions. Likings come from the pairs of ``train`` and ``arch``, the slope from ``val`` and ``test``.

    Args:
        folder: that ``encode`` wrote.

    Raises:
        ValueError: if the data are no interactions.
    """
    shared = Encoded.load(folder).interactions
    if shared is None:
        raise ValueError(
            f"{folder}: its rows are no interactions of users and items; choose such a data set, or users: planted"
        )
    items = len(shared.items)
    pairs = [matrix(shared.pairs(*parts), items) for parts in (("train", "arch"), ("val", "test"))]
    return Known(str(folder), _halves(shared), *pairs)


def planted(seed: int, users: int, items: int) -> Known:
    """Users and items that are made up: each has a random vector, and a user takes items by the inner product and by a
    popularity that falls as 1 / rank. Every sixth item of a user is held out.

    Args:
        seed: of everything.
        users, items: U and I, at least twice `EACH` items.

    Raises:
        ValueError: if there are too few items.
    """
    if items < 2 * EACH:
        raise ValueError(f"planted users need at least {2 * EACH} items, got {items}")
    rng = np.random.default_rng(seed)
    likings = rng.normal(size=(users, FACTORS)) @ rng.normal(size=(items, FACTORS)).T * STRENGTH / np.sqrt(FACTORS)
    popular = -np.log(1 + rng.permutation(items))
    taken = np.argsort(-(likings + popular + rng.gumbel(size=(users, items))), axis=1)[:, :EACH]
    held = np.zeros((users, items), dtype=bool)
    known = held.copy()
    rows = np.arange(users)[:, None]
    shuffled = rng.permuted(taken, axis=1)
    held[rows, shuffled[:, : EACH // 6]] = True
    known[rows, shuffled[:, EACH // 6 :]] = True
    halves = np.where(rng.permutation(users) % 2, "test", "learn")
    made = [sparse.csr_array(part.astype(np.float32)) for part in (known, held)]
    return Known("planted users", halves, *made)


def people(of: Known, half: Half, seed: int, dim: int = 32, most: int = 4000) -> People:
    """The users of one half.

    Args:
        of: all users.
        half: which.
        seed: of the order of known items, of the random items of the regression, and of the users that are drawn.
        dim: D, singular vectors.
        most: users; of more, so many are drawn.

    Raises:
        ValueError: if there are too few users, or too few or too many items.
    """
    known, items = of.known, of.known.shape[1]
    if max(min(len(of.halves), most), items) * items > _MOST_CELLS:
        raise ValueError(
            f"{of.place}: {items} items are too many for a world, which compares all of them; encode fewer"
        )
    own = {name: (of.halves == name) & (np.diff(known.indptr) > 0) for name in ("learn", "test")}
    for name, members in own.items():
        if min(members.sum(), items) <= dim:
            raise ValueError(
                f"{of.place}: the {name} half has {members.sum()} users of {items} items, too few for {dim} dimensions"
            )
    factors, scales = _factors(known[own["learn"]], dim)
    vectors = factors * np.sqrt(scales)
    rng = np.random.default_rng(seed)
    chosen = own[half].nonzero()[0]
    if len(chosen) > most:
        chosen = np.sort(rng.choice(chosen, most, replace=False))
    if half == "learn":
        scores, alike = (known[chosen] @ factors) @ factors.T, _cosines(vectors)
    else:
        scores, alike = _by_neighbours(known, own["test"], chosen), _together(known[own["test"]])
    liking = normal_scores(scores)
    slope = _slope(liking, known[chosen], of.held[chosen], rng)
    return People(
        torch.from_numpy(liking),
        slope,
        torch.from_numpy(alike.astype(np.float32)),
        torch.from_numpy((vectors / np.linalg.norm(vectors, axis=1).mean()).astype(np.float32)),
        *_shuffled(known[chosen], rng),
        torch.from_numpy(known[own[half]].sum(0).astype(np.float64)),
    )


def normal_scores(scores: np.ndarray) -> np.ndarray:
    """(U, I) float32: the standard normal quantile of each score's rank in its row; equal scores share their rank."""
    ranks = rankdata(scores, axis=1)
    return ndtri((ranks - 0.5) / scores.shape[1]).astype(np.float32)


def _halves(shared: Interactions) -> np.ndarray:
    """(U,) the half of each user, by the last bit of the SHA-256 of the key, which the seed does not change."""
    keys = pq.read_table(shared.folder / USER_KEYS_FILE).sort_by("number")["key"].to_pylist()
    bits = np.array([hashlib.sha256(str(key).encode()).digest()[-1] & 1 for key in keys])
    return np.where(bits, "test", "learn")


def _factors(known: sparse.csr_array, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """The largest singular vectors of items (I, D) and values (D,) of a matrix (U, I)."""
    start = np.ones(min(known.shape))
    _, scales, items = svds(known.astype(np.float64), k=dim, v0=start)
    order = np.argsort(-scales)
    signs = np.where(items[order].sum(1) < 0, -1.0, 1.0)
    return items[order].T * signs, scales[order]


def _cosines(vectors: np.ndarray) -> np.ndarray:
    """(I, I) cosines of vectors (I, D), at least 0."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    alike = (unit @ unit.T).clip(0, 1)
    np.fill_diagonal(alike, 1)
    return alike


def _together(known: sparse.csr_array) -> np.ndarray:
    """(I, I) cosines of the items' sets of users."""
    roots = inverse_roots(known.sum(0))
    alike = (known.T @ known).toarray() * roots[:, None] * roots
    alike = alike.clip(0, 1)
    np.fill_diagonal(alike, 1)
    return alike


def _by_neighbours(known: sparse.csr_array, members: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """(U, I) scores of chosen users (U,), from the neighbours of items among the members of a half."""
    own = known[members]
    pairs = Pairs(own.indptr.astype(np.int64), own.indices.astype(np.int64))
    scorer = item_knn.fit(pairs, known.shape[1], neighbours=_NEIGHBOURS, shrinkage=_SHRINKAGE)
    return scorer.scores(known[chosen], np.zeros((len(chosen), 0), np.int64))


def _slope(liking: np.ndarray, known: sparse.csr_array, held: sparse.csr_array, rng: np.random.Generator) -> float:
    """The slope of a logistic regression of held-out items (U, I) against as many random items that no part has."""
    rows, items = held.nonzero()
    if not len(rows):
        raise ValueError("no user of this half has held-out items, so liking has no slope; encode with val and test")
    others = rng.integers(0, liking.shape[1], len(rows))
    either = (known + held).astype(bool).tocsr()
    free = ~np.asarray(either[rows, others]).ravel()
    values = np.concatenate([liking[rows, items], liking[rows[free], others[free]]])
    labels = np.repeat([1, 0], [len(rows), free.sum()])
    return float(LogisticRegression().fit(values[:, None], labels).coef_[0, 0])


def _shuffled(known: sparse.csr_array, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Starts (U + 1,) and items of each user in random order."""
    rows = np.repeat(np.arange(known.shape[0]), np.diff(known.indptr))
    order = np.lexsort((rng.random(len(rows)), rows))
    return torch.from_numpy(known.indptr.astype(np.int64)), torch.from_numpy(known.indices[order].astype(np.int64))
