"""The planted data: what is known of them is true, and the report's figures of recovery are what they say."""

import numpy as np
import pytest

from pipeline.datasets import synthetic
from stages.evaluate import _has, _planted

RANKS = {name: rank for name, (_, _, rank) in synthetic.FIELDS.items()}


def test_halving_any_rank_costs_the_same_share_of_the_logit() -> None:
    """All coordinates are standard normal, so a pair of fields has as much variance as coordinates in common."""

    def variance(ranks: dict[str, int]) -> int:
        values = list(ranks.values())
        return sum(min(a, b) for i, a in enumerate(values) for b in values[i + 1 :])

    lost = [1 - variance(RANKS | {name: r // 2}) / variance(RANKS) for name, r in RANKS.items() if r > 1]
    assert lost == pytest.approx([0.065] * len(lost), abs=0.0005)


def test_the_logit_is_the_sum_of_inner_products_of_vectors_of_the_planted_ranks() -> None:
    world = synthetic._World(0, exponent=0.7, scale=2.0, click_rate=0.3)
    drawn = world._draw(50, np.random.default_rng(1))
    for name, rank in RANKS.items():
        assert np.linalg.matrix_rank(world.vectors[name]) == rank
    expected = np.empty(50)
    for row in range(50):
        vectors = []
        for name, values in drawn.items():
            numbers = np.atleast_1d(values[row])
            vectors.append(world.vectors[name][numbers[numbers >= 0]].mean(0))
        pairs = sum(a @ b for i, a in enumerate(vectors) for b in vectors[i + 1 :])
        expected[row] = pairs * world.factor + world.shift
    np.testing.assert_allclose(world._logits(drawn), expected, rtol=1e-10)


def test_a_field_and_its_copy_count_once_by_the_larger_dimension(tmp_path) -> None:
    labels = np.array([0, 1, 0, 1], dtype=np.uint8)
    np.save(tmp_path / "oracle.npy", np.array([0.1, 0.2, 0.3, 0.4]))
    facts = {"ranks": {"a": 1, "b": 2, "c": 4}, "copies": {"twin": "c"}}
    found = _planted({"a": 1, "b": 2, "c": 1, "twin": 8}, facts, labels, tmp_path / "oracle.npy")
    assert found["rank_correlation"] == pytest.approx(1.0)
    assert found["best_possible_auc"] == 0.75
    assert found["planted"][2] == {"feature": "c", "rank": 4, "dim": 8}
    alike = _planted({"a": 2, "b": 2, "c": 2, "twin": 1}, facts, labels, tmp_path / "oracle.npy")
    assert alike["rank_correlation"] is None


def test_a_control_that_drew_the_searched_dimensions_is_noticed() -> None:
    searched = {"a": 1, "b": 2}
    assert _has({"b": 2, "a": 1}, searched) and _has([{"a": 2, "b": 2}, searched], searched)
    assert not _has({"a": 2, "b": 2}, searched) and not _has([{"a": 2, "b": 2}], searched)
