"""Each reference against a dense one written out, and the choice of options."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from pipeline.data.interactions import Columns, Interactions, Pairs
from pipeline.data.schema import Field, Schema
from pipeline.data.split import Split
from pipeline.references import ease, gf_cf, item_knn, last_bought, popularity
from pipeline.references.choose import LISTED, REFERENCES, left_out, results, top_items

USERS, ITEMS = 30, 12
SCHEMA = Schema((Field("item", ITEMS, 1, "item"),))
NO_HISTORY = np.zeros((USERS, 0), np.int32)
SMALL = {
    "popularity": {},
    "last_bought": {},
    "item_knn": {"neighbours": 3, "shrinkage": 1.0},
    "ease": {"ridge": 2.0},
    "gf_cf": {"vectors": 4, "alpha": 0.5},
}


@pytest.fixture
def known() -> np.ndarray:
    """(U, I) 0 or 1; user 3 has nothing, and item 7 has no users."""
    known = np.random.default_rng(2).random((USERS, ITEMS)) < np.linspace(0.6, 0.1, ITEMS)
    known[3], known[:, 7] = False, False
    return known.astype(np.float64)


def pairs(known: np.ndarray) -> Pairs:
    return Pairs.of(*np.nonzero(known), *known.shape)


def profiles(known: np.ndarray) -> sparse.csr_array:
    return sparse.csr_array(known.astype(np.float32))


def test_popularity_counts_users(known: np.ndarray) -> None:
    found = popularity.fit(pairs(known), ITEMS).scores(profiles(known), NO_HISTORY)
    assert (found == known.sum(axis=0)).all() and found.shape == (USERS, ITEMS)


def test_last_bought_lists_the_history_before_popular_items(known: np.ndarray) -> None:
    known[:, 5] = 1  # the most popular one
    histories = np.array([[2, 9, 2, 4], [8, -1, -1, -1], [-1, -1, -1, -1]])
    scores = last_bought.fit(pairs(known), ITEMS).scores(profiles(known[:3]), histories)
    ranked = np.argsort(-scores, axis=1, kind="stable")
    by_count = np.argsort(-known.sum(axis=0), kind="stable")
    for row, first in zip(ranked, ([2, 9, 4], [8], []), strict=True):
        assert row.tolist() == [*first, *(item for item in by_count if item not in first)]


def test_ease_predicts_each_item_by_ridge_regression_on_the_others(known: np.ndarray) -> None:
    weights = np.zeros((ITEMS, ITEMS))
    for item in range(ITEMS):
        others = np.arange(ITEMS) != item
        x, y = known[:, others], known[:, item]
        weights[others, item] = np.linalg.solve(x.T @ x + 2 * np.eye(ITEMS - 1), x.T @ y)
    found = ease.fit(pairs(known), ITEMS, ridge=2.0)
    assert found.scores(profiles(known), NO_HISTORY) == pytest.approx(known @ weights, abs=1e-5)


def test_ease_refuses_what_it_cannot_invert(known: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"ridge must be so large that .* got 0.0"):
        ease.fit(pairs(known), ITEMS, ridge=0.0)


@pytest.mark.parametrize(("neighbours", "shrinkage"), [(3, 0.0), (3, 10.0), (50, 1.0)])
def test_item_knn_sums_the_similarities_of_the_nearest_items(
    known: np.ndarray, neighbours: int, shrinkage: float
) -> None:
    users = known.sum(axis=0)
    expected = np.zeros((USERS, ITEMS))
    for item in range(ITEMS):
        cosines = {}
        for other in range(ITEMS):
            both = known[:, item] @ known[:, other]
            if other != item and both:
                cosines[other] = both / (np.sqrt(users[item] * users[other]) + shrinkage)
        nearest = sorted(cosines, key=lambda other: (-cosines[other], other))[:neighbours]
        expected[:, item] = sum((known[:, other] * cosines[other] for other in nearest), np.zeros(USERS))
    found = item_knn.fit(pairs(known), ITEMS, neighbours=neighbours, shrinkage=shrinkage)
    assert found.scores(profiles(known), NO_HISTORY) == pytest.approx(expected, abs=1e-5)


def test_item_knn_is_the_same_in_blocks(known: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = item_knn.fit(pairs(known), ITEMS, neighbours=3, shrinkage=0.0).similarities.toarray()
    monkeypatch.setattr(item_knn, "_BLOCK", 5)
    assert (item_knn.fit(pairs(known), ITEMS, neighbours=3, shrinkage=0.0).similarities.toarray() == whole).all()


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("vectors", [2, 5, 500])
def test_gf_cf_is_the_sum_of_two_filters(known: np.ndarray, vectors: int, turned: bool) -> None:
    """Once with more users than items, once with fewer."""
    known = known.T if turned else known
    users, items = known.sum(axis=1), known.sum(axis=0)
    normalised = known / np.sqrt(np.maximum(1, users))[:, None] / np.sqrt(np.maximum(1, items))
    values, right = np.linalg.svd(normalised)[1:]
    kept = right[: min(vectors, int((values > 1e-9).sum()))]
    ideal = np.diag(1 / np.sqrt(np.maximum(1, items))) @ kept.T @ kept @ np.diag(np.sqrt(items))
    found = gf_cf.fit(pairs(known), known.shape[1], vectors=vectors, alpha=0.3)
    expected = known @ (normalised.T @ normalised + 0.3 * ideal)
    assert found.scores(profiles(known), NO_HISTORY) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", REFERENCES)
def test_a_reference_scores_an_empty_profile_and_a_new_item_and_is_the_same_each_time(
    name: str, known: np.ndarray
) -> None:
    histories = np.full((USERS, 2), -1)
    scores = [
        REFERENCES[name].fit(pairs(known), ITEMS, **SMALL[name]).scores(profiles(known), histories) for _ in range(2)
    ]
    assert scores[0].dtype == np.float32 and scores[0].shape == (USERS, ITEMS)
    assert np.isfinite(scores[0]).all() and (scores[0] == scores[1]).all()
    assert (scores[0][:, 7] == 0).all()  # no user has it
    assert name in ("popularity", "last_bought") or (scores[0][3] == 0).all()  # nothing is known of this user


# --- ranking


def test_the_top_is_sorted_by_score_and_then_by_the_given_order() -> None:
    rng = np.random.default_rng(4)
    scores = rng.integers(-2, 3, (50, 30)).astype(np.float32)
    scores[scores == 0] *= rng.choice([-1, 1], (scores == 0).sum())  # -0 is 0
    scores[rng.random(scores.shape) < 0.3] = -np.inf
    order = rng.permutation(30)
    place = np.argsort(order)
    for k in (1, 10, 30, 40):
        expected = []
        for row in scores:
            items = sorted(np.flatnonzero(row > -np.inf), key=lambda item: (-row[item], place[item]))[:k]
            expected.append(items + [-1] * (k - len(items)))
        assert top_items(scores, k, order).tolist() == expected


def split(rng: np.random.Generator, known: np.ndarray, history: int, part: str = "test") -> Split:
    """Rows of a part: a query for each user, whose targets are drawn from what is not known."""
    rows = []
    for user in range(USERS):
        given = [*rng.permutation(ITEMS)[:history]]
        rows += [
            [user, user, item, 0, *given] for item in np.flatnonzero((known[user] == 0) & (rng.random(ITEMS) < 0.4))
        ]
    return interactions(np.array(rows, np.int32), history, part)


def interactions(rows: np.ndarray, history: int, part: str) -> Split:
    users, items = np.zeros((USERS, 0), np.int32), np.zeros((ITEMS, 0), np.int32)
    shared = Interactions(Path("unused"), SCHEMA, users, items, np.zeros(ITEMS, np.int64), Columns(history, 0), {})
    return Split((rows,), (np.ones(len(rows), np.uint8),), (part,), shared)


def of_training(known: np.ndarray, history: int) -> Split:
    users, items = np.nonzero(known)
    rows = np.full((len(users), 4 + history), -1, np.int32)
    rows[:, :4] = np.stack([users, users, items, np.zeros(len(users))], axis=1)
    return interactions(rows, history, "train")


@pytest.fixture
def small_grids(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, options in SMALL.items():
        monkeypatch.setattr(REFERENCES[name], "GRID", (options,))


def test_the_options_of_the_best_recall_on_val_rank_test(known: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    val, test = split(rng, known, 0, "val"), split(rng, known, 0)
    grid = [{"ridge": ridge} for ridge in (0.1, 3.0, 1000.0)]
    monkeypatch.setattr(ease, "GRID", grid)
    chosen = results(of_training(known, 0), val, test)["ease"]
    rows = val.ids[0]

    def ranked(options: dict[str, float]) -> np.ndarray:
        scores = ease.fit(pairs(known), ITEMS, **options).scores(profiles(known), NO_HISTORY)
        return np.array([np.lexsort((np.arange(ITEMS), -known.sum(axis=0), -row)) for row in scores])

    # The catalogue is smaller than 20 items, so all options have recall 1, and the first one is chosen.
    assert chosen.val["recall_20"] == 1 and chosen.options == grid[0]
    monkeypatch.setattr("pipeline.references.choose.JUDGED", 3)
    chosen = results(of_training(known, 0), val, test)["ease"]
    recalls = []
    for options in grid:
        top = ranked(options)[:, :3]
        shares = [np.isin(rows[rows[:, 0] == query, 2], top[query]).mean() for query in np.unique(rows[:, 0])]
        recalls.append(np.mean(shares))
    assert len(set(recalls)) > 1 and chosen.options == grid[int(np.argmax(recalls))]
    assert chosen.val["recall_3"] == pytest.approx(max(recalls))
    asked = np.unique(test.ids[0][:, 1])
    assert chosen.top.shape == (len(asked), LISTED) and (chosen.top[:, ITEMS:] == -1).all()
    assert (chosen.top[:, :ITEMS] == ranked(chosen.options)[asked]).all()


@pytest.mark.usefixtures("small_grids")
def test_items_that_a_user_has_seen_are_not_shown(known: np.ndarray) -> None:
    rng = np.random.default_rng(6)
    val, test = split(rng, known, 0, "val"), split(rng, known, 0)
    found = results(of_training(known, 0), val, test, seen_val=pairs(known), seen_test=pairs(known))
    assert set(found) == set(REFERENCES) - {"last_bought"}
    asked = np.unique(test.ids[0][:, 1])
    for chosen in found.values():
        for user, top in zip(asked, chosen.top, strict=True):
            assert sorted(top[top >= 0]) == np.flatnonzero(known[user] == 0).tolist()


@pytest.mark.usefixtures("small_grids")
def test_the_history_belongs_to_what_is_known_and_chunks_change_nothing(
    known: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(7)
    training, val, test = of_training(known, 2), split(rng, known, 2, "val"), split(rng, known, 2)
    found = results(training, val, test)
    rows = test.ids[0][np.unique(test.ids[0][:, 0], return_index=True)[1]]
    both = known[rows[:, 1]]
    np.put_along_axis(both, rows[:, 4:], 1, axis=1)
    for name, chosen in found.items():
        scores = REFERENCES[name].fit(pairs(known), ITEMS, **SMALL[name]).scores(profiles(both), rows[:, 4:])
        for row, top in zip(scores, chosen.top, strict=True):
            assert (np.diff(row[top[:ITEMS]]) <= 0).all()
    assert (found["last_bought"].top[:, :2] == rows[:, 4:]).all()
    monkeypatch.setattr("pipeline.references.choose._CELLS", 3 * ITEMS)
    again = results(training, val, test)
    assert set(found) == set(REFERENCES)
    for name, chosen in found.items():
        assert (again[name].top == chosen.top).all() and again[name].val == chosen.val


def test_references_that_do_not_suit_the_data_are_left_out_with_a_reason() -> None:
    assert left_out(15_000, 1) == {}
    assert left_out(40_981, 0) == {
        "last_bought": "the data have no history",
        "ease": "it inverts a matrix of 40,981 x 40,981 items, and is run up to 15,000",
    }


def test_rows_that_are_no_interactions_and_empty_parts_are_refused(known: np.ndarray) -> None:
    training = of_training(known, 0)
    clicks = Split(training.ids, training.labels, ("train",))
    with pytest.raises(ValueError, match="need rows that are interactions"):
        results(clicks, training, training)
    with pytest.raises(ValueError, match="at least 1 row of val, got 0"):
        results(training, interactions(np.zeros((0, 4), np.int32), 0, "val"), training)
