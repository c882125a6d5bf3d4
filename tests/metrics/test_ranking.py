"""Metrics of ranked items, against loops, numbers worked by hand and a simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline.metrics.ranking import (
    Queries,
    by_group,
    coverage,
    influence,
    influence_by_group,
    ndcg,
    recall,
    reciprocal_rank,
)

# Query 0 of user 5 with the targets 2 (twice) and 7, query 1 of user 1 with 0, query 2 of user 5 with 1, 3 and 4.
ROWS = np.array(
    [[0, 5, 7, 0], [0, 5, 2, 1], [0, 5, 2, 1], [1, 1, 0, 0], [2, 5, 4, 0], [2, 5, 1, 1], [2, 5, 3, 0]], np.int32
)
TOP = np.array([[7, 1, 2], [3, 4, -1], [0, 1, 4]], np.int32)


def drawn(rng: np.random.Generator, queries: int, items: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of interactions, and a ranking of k items for each query."""
    rows = [
        [query, rng.integers(queries), item, rng.integers(2)]
        for query in range(queries)
        for item in rng.choice(items, rng.integers(1, items), replace=False)
    ]
    table = np.array(rows, np.int32)
    for query in range(queries):
        table[table[:, 0] == query, 1] = query % 3
    return table, np.array([rng.permutation(items)[:k] for _ in range(queries)], np.int32)


def lightgcn(top: list[int], targets: set[int], k: int) -> tuple[float, float]:
    """Recall and NDCG of a user as LightGCN's evaluation writes them."""
    r = [float(item in targets) for item in top[:k]]
    test = [1.0] * min(k, len(targets)) + [0.0] * max(0, k - len(targets))
    ideal = sum(gain / math.log2(place + 2) for place, gain in enumerate(test))
    dcg = sum(gain / math.log2(place + 2) for place, gain in enumerate(r))
    return sum(r) / len(targets), dcg / ideal


def test_queries_hold_their_distinct_targets_and_whether_they_are_repeats() -> None:
    queries = Queries.of(ROWS)
    assert (len(queries), queries.first.tolist(), queries.users.tolist()) == (3, [0, 3, 4], [5, 1, 5])
    assert queries.starts.tolist() == [0, 2, 3, 6] and queries.sizes.tolist() == [2, 1, 3]
    assert queries.items.tolist() == [2, 7, 0, 1, 3, 4]
    assert queries.repeats.tolist() == [True, False, False, True, False, False]


def test_the_metrics_are_those_worked_by_hand() -> None:
    queries = Queries.of(ROWS)
    hits, sizes = queries.hits(TOP), queries.sizes
    assert hits.tolist() == [[True, False, True], [False, False, False], [False, True, True]]
    assert recall(hits, sizes, 3) == pytest.approx([1, 0, 2 / 3])
    assert recall(hits, sizes, 1) == pytest.approx([1 / 2, 0, 0])
    second, third = 1 / math.log2(3), 1 / 2
    assert ndcg(hits, sizes, 3) == pytest.approx([(1 + third) / (1 + second), 0, (second + third) / (1.5 + second)])
    assert ndcg(hits, sizes, 1) == pytest.approx([1, 0, 0])
    assert reciprocal_rank(hits) == pytest.approx([1, 0, 1 / 2])
    assert coverage(TOP, 10, 1) == pytest.approx(0.3) and coverage(TOP, 10, 3) == pytest.approx(0.6)


@pytest.mark.parametrize("k", [1, 3, 8])
def test_recall_and_ndcg_are_those_of_lightgcn(k: int) -> None:
    rows, top = drawn(np.random.default_rng(0), 40, 12, 8)
    queries = Queries.of(rows)
    expected = [lightgcn(list(top[query]), set(rows[rows[:, 0] == query, 2]), k) for query in range(40)]
    hits = queries.hits(top)
    assert np.stack([recall(hits, queries.sizes, k), ndcg(hits, queries.sizes, k)], 1) == pytest.approx(
        np.array(expected)
    )


def test_the_place_of_no_item_is_no_hit_even_beside_the_last_item_of_another_query() -> None:
    queries = Queries.of(np.array([[0, 0, 4, 0], [1, 1, 2, 0]], np.int32))
    assert not queries.hits(np.array([[-1], [-1]], np.int32)).any()


def test_groups_count_the_targets_of_the_group_only() -> None:
    rng = np.random.default_rng(3)
    rows, _ = drawn(rng, 30, 40, 1)
    top = np.array([rng.permutation(40)[:25] for _ in range(30)], np.int32)
    counts, lengths = rng.integers(0, 6, 40), rng.choice([0, 1, 4, 5, 19, 20, 50], 30)
    above = {item: sum(count for count in counts if count > counts[item]) / counts.sum() for item in range(40)}
    groups = {
        "all": lambda row: True,
        "repeat": lambda row: row[3] == 1,
        "new": lambda row: row[3] == 0,
        "cold": lambda row: counts[row[2]] == 0,
        "head": lambda row: above[row[2]] < 1 / 3,
        "middle": lambda row: 1 / 3 <= above[row[2]] < 2 / 3,
        "tail": lambda row: above[row[2]] >= 2 / 3,
        "history 0": lambda row: lengths[row[0]] == 0,
        "history 1-4": lambda row: 1 <= lengths[row[0]] <= 4,
        "history 5-19": lambda row: 5 <= lengths[row[0]] <= 19,
        "history 20+": lambda row: lengths[row[0]] >= 20,
    }
    found = by_group(top, Queries.of(rows), counts, lengths)
    assert list(found) == list(groups)
    for name, belongs in groups.items():
        targets = {query: {row[2] for row in rows if row[0] == query and belongs(row)} for query in range(30)}
        judged = [lightgcn(list(top[query]), those, 20) for query, those in targets.items() if those]
        assert found[name]["queries"] == len(judged)
        assert found[name]["targets"] == sum(map(len, targets.values()))
        assert [found[name]["recall_20"], found[name]["ndcg_20"]] == pytest.approx(np.mean(judged, axis=0))


def test_the_influence_on_a_group_is_that_on_the_queries_that_have_targets_of_it() -> None:
    rng = np.random.default_rng(3)
    rows, top = drawn(rng, 40, 30, 20)
    queries, counts = Queries.of(rows), rng.integers(0, 3, 30)
    found = influence_by_group(top, queries, counts, np.zeros(40, int))
    assert set(found) == set(by_group(top, queries, counts, np.zeros(40, int)))
    cold = [
        (queries.users[q], {i for i in queries.items[queries.starts[q] : queries.starts[q + 1]] if counts[i] == 0})
        for q in range(40)
    ]
    asked = [(user, len(own & set(top[q])) / len(own)) for q, (user, own) in enumerate(cold) if own]
    expected = influence(np.array([value for _, value in asked]), np.array([user for user, _ in asked]))
    np.testing.assert_allclose(found["cold"], expected, atol=1e-12)


def test_groups_without_targets_are_left_out() -> None:
    rows = np.array([[0, 0, 1, 0]], np.int32)
    top = np.arange(20, dtype=np.int32)[None]
    found = by_group(top, Queries.of(rows), np.ones(20), np.array([3]))
    assert list(found) == ["all", "new", "head", "history 1-4"]


def test_influences_tell_the_standard_error_where_queries_of_a_user_are_alike() -> None:
    """Users ask 1 to 9 times and differ from each other, so the queries alone would tell an error that is too small."""
    rng = np.random.default_rng(1)
    means, errors, naive = [], [], []
    for _ in range(1000):
        users = np.repeat(np.arange(60), rng.integers(1, 10, 60))
        values = rng.normal(size=60)[users] + 0.3 * rng.normal(size=len(users))
        of_users = influence(values, users)
        assert abs(of_users.mean()) < 1e-12 and len(of_users) == 60
        means.append(values.mean())
        errors.append(np.square(of_users).sum() / 60**2)
        naive.append(values.var(ddof=1) / len(values))
    assert np.mean(errors) == pytest.approx(np.var(means), rel=0.12)
    assert np.mean(naive) < 0.4 * np.var(means)


def test_with_one_query_for_each_user_the_variance_is_that_of_a_mean() -> None:
    values = np.array([0.2, 0.5, 0.9, 0.1])
    of_users = influence(values, np.array([3, 1, 8, 2]))
    assert np.square(of_users).sum() / 4**2 == pytest.approx(values.var(ddof=1) / 4)
    assert np.argmax(of_users) == 3  # users are in the order of their numbers
    assert np.isnan(influence(values, np.zeros(4, int))).all()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[0, 0, 1, 0], [1, 0, 1, 0], [0, 0, 2, 0]], "must follow each other, and those of 0 do not"),
        ([[0, 4, 1, 0], [0, 5, 2, 0]], "must have one user, got 4 and 5 in query 0"),
    ],
)
def test_queries_that_are_torn_or_mixed_are_refused(rows: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Queries.of(np.array(rows, np.int32))


def test_rankings_that_are_too_short_are_refused() -> None:
    queries = Queries.of(ROWS)
    with pytest.raises(ValueError, match=r"one row for each of 3 queries, got shape \(2, 3\)"):
        queries.hits(TOP[:2])
    for wrong in (0, 4):
        with pytest.raises(ValueError, match=f"k must be from 1 to 3, the number of ranked items, got {wrong}"):
            recall(queries.hits(TOP), queries.sizes, wrong)
    with pytest.raises(ValueError, match="k must be from 1 to 3"):
        by_group(TOP, queries, np.ones(8), np.ones(3))
