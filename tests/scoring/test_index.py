"""An approximate index finds what the exact search finds when it is asked for all, and says what it lacks."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.functional import normalize

from pipeline.data.encoded import Encoded
from pipeline.models.nearest import nearest
from pipeline.models.retriever import NotFinite
from pipeline.scoring.index import Index
from pipeline.scoring.ranker import Ranker
from pipeline.scoring.recall import compare
from pipeline.tasks.retrieval import best
from stages import indices as indices_stage
from stages import score
from tests.interactions import retriever, write_interactions
from tests.project import Project
from tests.scoring.conftest import searched

pytest.importorskip("faiss")

QUERIES, ITEMS, WIDTH, K = 60, 3000, 10, 20
NOTHING = np.zeros(0, np.int64), np.zeros(0, np.int64)


def drawn(score: str, items: int = ITEMS, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and items of different lengths, or of length 1."""
    generator = torch.Generator().manual_seed(seed)
    queries, vectors = (torch.randn(n, WIDTH, generator=generator) for n in (QUERIES, items))
    if score == "cosine":
        return normalize(queries, dim=1), normalize(vectors, dim=1)
    return 3 * queries, vectors * torch.rand(items, 1, generator=generator)


def pairs(items: int = ITEMS) -> tuple[np.ndarray, np.ndarray]:
    """None for the first query, 300 for the second, so many for the others."""
    rng = np.random.default_rng(0)
    counts = [0, min(300, items), *rng.integers(0, min(50, items + 1), QUERIES - 2)]
    own = [np.sort(rng.choice(items, count, replace=False)) for count in counts]
    return np.repeat(np.arange(QUERIES), counts), np.concatenate(own)


def shares(found: np.ndarray, expected: np.ndarray) -> float:
    both = zip(found.tolist(), expected.tolist(), strict=True)
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in both]))


@pytest.mark.parametrize("score", ["cosine", "dot"])
def test_a_graph_that_is_searched_in_whole_is_the_exact_search(score: str) -> None:
    queries, items = drawn(score)
    expected, scores = nearest(queries, items, pairs(), K)
    found, mine = Index(f"hnsw:ef_search={ITEMS}")(queries, items, pairs(), K)
    assert found.tolist() == expected.tolist() and found.dtype == expected.dtype
    np.testing.assert_allclose(mine, scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("asked", "score"),
    [
        ("hnsw:m=8,ef_search=40", "cosine"),
        ("hnsw:m=8,ef_search=40", "dot"),
        ("ivfpq:m=10", "cosine"),
        ("ivfpq:m=11,nprobe=30", "dot"),  # with the number that makes all lengths equal
    ],
)
def test_most_of_the_best_are_found_none_that_is_left_out_and_as_many_as_asked_for(asked: str, score: str) -> None:
    queries, items = drawn(score)
    expected, scores = nearest(queries, items, pairs(), K)
    found, mine = Index(asked)(queries, items, pairs(), K)
    assert shares(found, expected) > 0.8 and found.shape == (QUERIES, K) and (found >= 0).all()
    assert all(len(set(row)) == K for row in found.tolist()) and (np.diff(mine, axis=1) <= 0).all()
    out = set(zip(*(side.tolist() for side in pairs()), strict=True))
    assert not out & {(query, item) for query, row in enumerate(found.tolist()) for item in row}
    assert np.abs(mine - scores).max() < 0.2 * np.abs(scores).max()


@pytest.mark.parametrize("score", ["cosine", "dot"])
def test_lists_that_are_all_read_of_codes_that_lose_nothing_are_the_exact_search(score: str) -> None:
    """A codebook of 256 entries holds 256 items as they are."""
    queries, items = drawn(score, 256)
    expected, scores = nearest(queries, items, pairs(256), K)
    found, mine = Index("ivfpq:nlist=4,nprobe=4")(queries, items, pairs(256), K)
    assert found.tolist() == expected.tolist()
    np.testing.assert_allclose(mine, scores, rtol=1e-4, atol=1e-5)


def test_few_lists_are_read_until_there_are_enough_items() -> None:
    queries, items = drawn("cosine")
    index = Index("ivfpq:nlist=300,nprobe=1")  # of ten items each
    found, _ = index(queries, items, pairs(), 200)
    assert (found >= 0).all()


@pytest.mark.parametrize("items", [1, 2, 30])
def test_a_small_catalogue_gives_all_that_is_left(items: int) -> None:
    queries, vectors = drawn("dot", items)
    expected, scores = nearest(queries, vectors, pairs(items), 100)
    found, mine = Index("hnsw")(queries, vectors, pairs(items), 100)
    assert found.tolist() == expected.tolist() and found.shape == (QUERIES, items)
    np.testing.assert_allclose(mine, scores, rtol=1e-4, atol=1e-5)


def test_items_and_queries_without_length_do_no_harm() -> None:
    queries, items = drawn("cosine")
    queries[0], items[5] = 0, 0
    found, scores = Index("hnsw")(queries, items, NOTHING, K)
    assert (found >= 0).all() and (scores[0] == 0).all() and np.isfinite(scores).all()


@pytest.mark.parametrize("asked", ["hnsw", "ivfpq"])
def test_the_same_items_give_the_same_index(asked: str) -> None:
    queries, items = drawn("dot")
    one, other = Index(asked), Index(asked)
    for a, b in zip(one(queries, items, pairs(), K), other(queries, items, pairs(), K), strict=True):
        assert a.tobytes() == b.tobytes()
    assert one.bytes == other.bytes > 0


def test_bytes_are_those_of_a_file_of_faiss(tmp_path: Path) -> None:
    queries, items = drawn("cosine")
    for asked, least in (("hnsw:m=8", ITEMS * (4 * WIDTH + 4 * 16)), ("ivfpq:m=5", ITEMS * (5 + 8) + 256 * WIDTH * 4)):
        index = Index(asked)
        index(queries, items, NOTHING, K)
        assert least < index.bytes < 1.3 * least


@pytest.mark.parametrize(
    ("asked", "items", "why"),
    [
        ("flat", ITEMS, "there is no 'flat'; valid are hnsw, ivfpq"),
        ("hnsw:nprobe=3", ITEMS, "nprobe"),
        ("hnsw:m=1", ITEMS, "m must be"),
        ("hnsw:m=few", ITEMS, "m must be"),
        ("hnsw:m", ITEMS, "m must be"),
        ("ivfpq", 200, "bits=8 needs at least 256 items, got 200; use hnsw"),
        ("ivfpq:bits=4,nlist=30", 20, "nlist=30 needs at least 30 items, got 20"),
        ("ivfpq:m=11", ITEMS, "m must be at most 10, the length of a vector, got 11"),
    ],
)
def test_an_index_that_cannot_be_made_is_refused_in_one_line(asked: str, items: int, why: str) -> None:
    queries, vectors = drawn("cosine", items)
    with pytest.raises(ValueError, match=why) as error:
        Index(asked)(queries, vectors, NOTHING, K)
    assert "\n" not in str(error.value)


def test_vectors_that_are_not_finite_are_refused() -> None:
    queries, items = drawn("cosine")
    items[3, 1] = torch.nan
    with pytest.raises(NotFinite):
        Index("hnsw")(queries, items, NOTHING, K)


@pytest.mark.parametrize("score", ["cosine", "dot"])
@pytest.mark.parametrize("mask_seen", [True, False])
@pytest.mark.parametrize(("name", "known_by"), [("mf", {}), ("two_tower", {"ids": "both"})])
def test_a_task_answers_with_the_same_items_by_an_index(
    tmp_path: Path, name: str, known_by: dict[str, str], mask_seen: bool, score: str
) -> None:
    data = Encoded.load(write_interactions(tmp_path / "encoded"))
    model, shared = retriever(data, name, **known_by), data.interactions
    assert shared is not None
    rows, known = np.concatenate(data.split("test").ids), shared.pairs("train", "arch")
    options = {"score": score, "mask_seen": mask_seen}
    for (exact, _), (found, _) in zip(
        best(model, rows, known, 7, **options), best(model, rows, known, 7, Index("hnsw"), **options), strict=True
    ):
        assert exact.tolist() == found.tolist()


def test_what_is_measured(graph: Project) -> None:
    ranker = Ranker.load(searched(graph))
    exact, index = (done := compare(ranker, 5, [Index("hnsw")])).rows
    model = ranker.model
    assert exact.recall == index.recall == 1.0 and done.users == len(ranker.answered)
    assert exact.bytes == len(ranker.items) * 8 * 4 < index.bytes  # D is 8
    dims = model.embedding.dims
    values = {field.name: field.cardinality for field in model.kept.fields}
    least = {name: 4 * values[name] * dims[name] for name in values}
    assert least["what"] <= done.of_items <= least["what"] + 4 * 8 * 8 and sum(least.values()) <= done.tables
    assert all(row.alone > 0 and row.together > 0 for row in done.rows) and index.seconds > 0
    with pytest.raises(ValueError, match="--top: must be at least 1, got 0"):
        compare(ranker, 0, [])


def test_the_commands_rank_by_an_index_and_say_what_it_finds(
    graph: Project, mixed: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*words: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["score", *words])
        score.run()
        return capsys.readouterr().err.splitlines()

    model, best_of = str(searched(graph)), [str(tmp_path / name) for name in ("exact.csv", "index.csv")]
    said(model, "all", best_of[0], "--top", "4")
    lines = said(model, "all", best_of[1], "--top", "4", "--index", "hnsw:m=8")
    exact, found = (pd.read_csv(file) for file in best_of)
    pd.testing.assert_frame_equal(exact, found, rtol=1e-4, atol=1e-5)
    assert "recall@4" in lines[-3] and lines[-1].split()[1:3] == ["hnsw:m=8", "1.0000"]
    monkeypatch.setattr(sys, "argv", ["indices", model, "hnsw", "hnsw:m=4", "--top", "3"])
    indices_stage.run()
    rows = capsys.readouterr().out.splitlines()[1:]
    assert [row.split()[0] for row in rows] == ["search", "exact", "hnsw", "hnsw:m=4"]
    with pytest.raises(ValueError, match="ivfpq: bits=8 needs at least 256 items"):
        said(model, "all", str(tmp_path / "none.csv"), "--index", "ivfpq")
    with pytest.raises(ValueError, match="--index is for models for retrieval"):
        said(str(searched(mixed)), "rows.csv", str(tmp_path / "none.csv"), "--index", "hnsw")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exact.csv", "index.csv"]
