"""Random allocations against a count of all choices."""

from itertools import product

import numpy as np
import pytest

from pipeline.allocation.draw import sample, sample_below


def test_every_allocation_in_the_window_is_equally_probable() -> None:
    prices = np.array([[100, 200, 400], [100, 200, 400], [50, 150, 350]])
    low, high = 540, 660
    inside = [c for c in product(range(3), repeat=3) if low <= prices[np.arange(3), c].sum() <= high]
    assert len(inside) > 3
    rng = np.random.default_rng(0)
    counts = dict.fromkeys(inside, 0)
    for _ in range(150 * len(inside)):
        counts[tuple(int(n) for n in sample(prices, low, high, rng))] += 1
    chi_square = sum((n - 150) ** 2 / 150 for n in counts.values())
    assert chi_square < 3 * len(inside)


def test_draws_on_39_fields_of_very_unequal_size_lie_in_the_window() -> None:
    dims = np.array([2, 8, 16, 24, 32])
    cardinalities = np.geomspace(3, 1e6, 39).astype(np.int64)
    prices = 4 * (cardinalities[:, None] * dims + np.where(dims < 32, dims * 32, 0))
    target = 0.3 * prices.max(1).sum()
    rng = np.random.default_rng(0)
    drawn = [sample(prices, int(0.98 * target), int(1.02 * target), rng) for _ in range(5)]
    for chosen in drawn:
        assert 0.98 * target - 1 <= prices[np.arange(39), chosen].sum() <= 1.02 * target
    assert len({tuple(chosen) for chosen in drawn}) == 5


def test_a_window_without_a_choice_is_refused_with_what_is_possible() -> None:
    prices = np.array([[10, 20], [100, 200]])
    with pytest.raises(ValueError, match="least is 110 and the most 220"):
        sample(prices, 300, 400, np.random.default_rng(0))
    with pytest.raises(ValueError, match="130 to 190"):
        sample(prices, 130, 190, np.random.default_rng(0))


def test_a_draw_below_a_limit_is_near_it_if_possible_and_anywhere_below_it_otherwise() -> None:
    prices = np.array([[10, 500], [10, 20], [10, 20]])
    for limit, totals in ((520, {520}), (519, {30, 40, 50}), (30, {30})):
        drawn = [sample_below(prices, limit, lambda seed=seed: np.random.default_rng(seed)) for seed in range(8)]
        assert {int(prices[np.arange(3), chosen].sum()) for chosen in drawn} == totals
    with pytest.raises(ValueError, match="least is 30 and the most 540"):
        sample_below(prices, 29, lambda: np.random.default_rng(0))


def test_a_candidate_above_the_whole_window_is_never_drawn() -> None:
    prices = np.array([[10, 500], [10, 20], [10, 20]])
    rng = np.random.default_rng(0)
    for _ in range(20):
        assert sample(prices, 30, 30, rng).tolist() == [0, 0, 0]
        assert sample(prices, 40, 40, rng).tolist() in ([0, 1, 0], [0, 0, 1])
