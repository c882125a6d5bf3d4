"""Approximate indices of item vectors, of the library faiss: a search that compares a query with some items only.

An index holds unit vectors, so that the largest inner product, the largest cosine and the smallest distance are the
same. Item vectors of other lengths are divided by the longest, M, and get one number more, sqrt(1 - |x|^2 / M^2); a
query is normalised and gets 0 there. The inner product with such a vector is q x / (|q| M), so the order is that of the
inner products (Bachrach et al. 2014, section 3).

Items that a query must not find are fetched and dropped: a search for k items fetches k and so many more. If too few
are left, it is repeated twice as wide. So a user gets as many items as from the exact search.

An index is built by one thread, with fixed seeds, so the same items give the same index. A search has torch's threads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Protocol

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from pipeline.models.nearest import LeftOut
from pipeline.models.retriever import NotFinite
from pipeline.workflow.validation import Count, checked_options

EXTRA = "pip install -r requirements.lock"  # has the extra [ann]
UNIT = 1e-5  # vectors whose lengths differ by less, as a share, have the same length
LEARNED_FROM = 64  # items for each entry of a codebook; more take longer and change the recall by 0.001
Links = Annotated[int, Field(ge=2, le=512)]
Bits = Annotated[int, Field(ge=1, le=8)]


class _Made(Protocol):
    """A built index of faiss, with how wide it searches."""

    @property
    def index(self) -> Any:
        """Of faiss."""

    def search(self, vectors: np.ndarray, fetch: int, factor: int) -> tuple[np.ndarray, np.ndarray]:
        """(n, fetch) scores and numbers of items, -1 where fewer are found; from some factor on, all are found."""


class Index:
    """A `pipeline.models.nearest.Search`; built at its first use.

    Args:
        asked: the name of a kind, with options if they are to differ from the defaults: ``"hnsw"``,
            ``"hnsw:m=32,ef_search=256"``.

    Raises:
        ValueError: if there is no such kind or option, or faiss is not installed.

    Attributes:
        seconds: that the index took to build.
    """

    seconds: float

    def __init__(self, asked: str) -> None:
        name, _, rest = asked.partition(":")
        if name not in KINDS:
            raise ValueError(f"--index: there is no {name!r}; valid are {', '.join(KINDS)}")
        self.asked, self._build = asked, KINDS[name]
        self.options = checked_options([self._build], _options(rest), f"--index {name}")
        try:
            import faiss  # of the extra [ann]; after torch, whose OpenMP is another one
        except ImportError as error:
            raise ValueError(f"--index {name} needs the package faiss-cpu; install it, e.g. with {EXTRA}") from error
        self._faiss, self._made = faiss, None

    _made: _Made | None

    @cached_property
    def bytes(self) -> int:
        """Of the index as faiss writes it to a file; after the first use."""
        assert self._made is not None
        return len(self._faiss.serialize_index(self._made.index))

    def __call__(self, queries: Tensor, items: Tensor, left_out: LeftOut, k: int) -> tuple[np.ndarray, np.ndarray]:
        """See `pipeline.models.nearest.Search`. The scores are those of the vectors that the index holds."""
        made = self._made or self._of(_numbers(items))
        self._faiss.omp_set_num_threads(torch.get_num_threads())
        vectors = _numbers(queries)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
        vectors = np.pad(vectors, ((0, 0), (0, made.index.d - vectors.shape[1])))
        numbers, scores = _found(made, vectors, len(items), left_out, k)
        return numbers, scores * (lengths * self._longest)

    def _of(self, items: np.ndarray) -> _Made:
        """The index of items (I, K)."""
        started = time.monotonic()
        lengths = np.linalg.norm(items, axis=1, keepdims=True)
        self._longest = max(lengths.max(), np.finfo(np.float32).tiny)
        vectors = items / self._longest
        if (lengths < (1 - UNIT) * self._longest).any():
            lacking = 1 - np.square(vectors).sum(1, keepdims=True)
            vectors = np.concatenate([vectors, np.sqrt(lacking.clip(min=0))], 1)
        self._faiss.omp_set_num_threads(1)
        self._made = self._build(self._faiss, vectors, **self.options)
        self.seconds = time.monotonic() - started
        return self._made


def _options(text: str) -> dict[str, Any]:
    """ "m=16,nlist=64" as a mapping; what is no whole number stays text, for the message of the check."""
    given: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        given[name.strip()] = int(value) if value.strip().isdecimal() else value.strip()
    return given


def _numbers(vectors: Tensor) -> np.ndarray:
    """Vectors as float32, which must be finite."""
    numbers = vectors.detach().float().cpu().numpy()
    if not np.isfinite(numbers).all():
        raise NotFinite("a vector of the model is not finite")
    return np.ascontiguousarray(numbers)


def _found(made: _Made, vectors: np.ndarray, items: int, left_out: LeftOut, k: int) -> tuple[np.ndarray, np.ndarray]:
    """What `pipeline.models.nearest.Search` returns, for queries as the index takes them."""
    at, number = left_out
    excluded = at * items + number  # ascending
    own = np.bincount(at, minlength=len(vectors))
    shown = min(k, items)
    wanted = np.minimum(k, items - own)
    fetch = np.minimum(items, 1 << np.ceil(np.log2(k + own)).astype(np.int64))  # few distinct ones
    numbers = np.full((len(vectors), shown), -1, np.int32)
    scores = np.full((len(vectors), shown), -np.inf, np.float32)
    for most in np.unique(fetch).tolist():
        left, factor = np.flatnonzero(fetch == most), 1
        while len(left):
            values, found = made.search(vectors[left], most, factor)
            fits = (found >= 0) & ~_among(left[:, None] * items + found, excluded)
            enough = fits.sum(1) >= wanted[left]
            first = np.argsort(~fits, axis=1, kind="stable")[:, :shown]
            taken = np.take_along_axis(fits, first, 1)
            numbers[left] = np.where(taken, np.take_along_axis(found, first, 1), -1)
            scores[left] = np.where(taken, np.take_along_axis(values, first, 1), -np.inf)
            left, factor = left[~enough], 2 * factor
    return numbers, scores


def _among(values: np.ndarray, ascending: np.ndarray) -> np.ndarray:
    """Which values are among others."""
    if not len(ascending):
        return np.zeros(values.shape, bool)
    place = np.searchsorted(ascending, values).clip(max=len(ascending) - 1)
    same: np.ndarray = ascending[place] == values
    return same


@dataclass(frozen=True)
class _Hnsw:
    """Where a walk through the graph would compare as many vectors as there are, all are compared instead."""

    faiss: Any
    index: Any
    m: int
    ef: int

    def search(self, vectors: np.ndarray, fetch: int, factor: int) -> tuple[np.ndarray, np.ndarray]:
        ef = factor * max(self.ef, fetch)
        if 2 * self.m * ef >= self.index.ntotal:
            return self.index.storage.search(vectors, fetch)
        return self.index.search(vectors, fetch, params=self.faiss.SearchParametersHNSW(efSearch=ef))


def _hnsw(
    faiss: Any, vectors: np.ndarray, /, *, m: Links = 16, ef_construction: Count = 200, ef_search: Count = 64
) -> _Hnsw:
    """A graph of neighbours (Malkov and Yashunin 2018) beside the float32 vectors.

    Args:
        faiss: the module.
        vectors: (I, K) of unit length.
        m: links of an item on each layer; twice as many on the lowest.
        ef_construction: candidates while an item is added.
        ef_search: candidates of a search, or as many as it fetches if they are more.
    """
    index = faiss.IndexHNSWFlat(vectors.shape[1], m, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = ef_construction
    index.add(vectors)
    return _Hnsw(faiss, index, m, ef_search)


@dataclass(frozen=True)
class _IvfPq:
    faiss: Any
    index: Any
    nprobe: int

    def search(self, vectors: np.ndarray, fetch: int, factor: int) -> tuple[np.ndarray, np.ndarray]:
        nprobe = min(self.index.nlist, factor * self.nprobe)
        return self.index.search(vectors, fetch, params=self.faiss.SearchParametersIVF(nprobe=nprobe))


def _ivfpq(
    faiss: Any,
    vectors: np.ndarray,
    /,
    *,
    nlist: Count | None = None,
    m: Count | None = None,
    bits: Bits = 8,
    nprobe: Count | None = None,
) -> _IvfPq:
    """Lists of items around centres, in which an item is the number of its code in each of m codebooks (Jegou et al.
    2011).

    Args:
        faiss: the module.
        vectors: (I, K) of unit length; they are padded with zeros to a multiple of m.
        nlist: lists; by default the square root of I.
        m: codes of an item; by default one for two numbers of its vector.
        bits: of a code.
        nprobe: lists that a search reads; by default an eighth of them, and at least 8.

    Raises:
        ValueError: if there are too few items for the codes or the lists, or too few numbers for m.
    """
    items, width = vectors.shape
    nlist = nlist or max(1, round(items**0.5))
    m = m or -(-width // 2)
    nprobe = min(nlist, nprobe or max(8, -(-nlist // 8)))
    for what, least in ((f"bits={bits}", 2**bits), (f"nlist={nlist}", nlist)):
        if items < least:
            raise ValueError(
                f"--index ivfpq: {what} needs at least {least:,} items, got {items:,}; use hnsw, or no index, which is "
                "fast for so few"
            )
    if m > width:
        raise ValueError(f"--index ivfpq: m must be at most {width}, the length of a vector, got {m}")
    vectors = np.pad(vectors, ((0, 0), (0, -width % m)))
    index = faiss.IndexIVFPQ(
        faiss.IndexFlatIP(vectors.shape[1]), vectors.shape[1], nlist, m, bits, faiss.METRIC_INNER_PRODUCT
    )
    for clustering in (index.cp, index.pq.cp):
        clustering.min_points_per_centroid = 1  # fewer only make a warning
    index.pq.cp.max_points_per_centroid = LEARNED_FROM
    index.train(vectors)
    index.add(vectors)
    return _IvfPq(faiss, index, nprobe)


KINDS: Mapping[str, Callable[..., _Made]] = {"hnsw": _hnsw, "ivfpq": _ivfpq}
