"""The knapsack against brute force; random controls against a count of all allocations."""

from itertools import product

import numpy as np
import pytest

from pipeline.choice import argmax, sample, within_budget


def brute_force(scores: np.ndarray, prices: np.ndarray, budget: int) -> float | None:
    best = None
    for choice in product(range(scores.shape[1]), repeat=len(scores)):
        rows = np.arange(len(scores))
        if prices[rows, choice].sum() <= budget:
            total = scores[rows, choice].sum()
            best = total if best is None else max(best, total)
    return best


@pytest.mark.parametrize("seed", range(40))
def test_the_choice_is_the_best_within_the_budget(seed: int) -> None:
    rng = np.random.default_rng(seed)
    fields, number = rng.integers(1, 6), rng.integers(1, 5)
    scores = np.log(rng.dirichlet(np.ones(number), fields))
    prices = rng.integers(0, 50, (fields, number))  # in no order: the price is not monotone in the dimension
    budget = int(rng.integers(prices.min(1).sum(), prices.max(1).sum() + 1))
    chosen = within_budget(scores, prices, budget)
    rows = np.arange(fields)
    assert prices[rows, chosen].sum() <= budget
    assert scores[rows, chosen].sum() == pytest.approx(brute_force(scores, prices, budget))


def test_a_budget_that_nothing_meets_is_refused_with_the_least_that_would_do() -> None:
    with pytest.raises(ValueError, match="30"):
        within_budget(np.zeros((2, 2)), np.array([[10, 20], [20, 30]]), 29)


def test_ties_go_to_the_smaller_dimension() -> None:
    assert argmax(np.array([[-1.0, -1.0, -2.0]]), [(2, 4, 8)]) == [2]


def test_every_allocation_in_the_window_is_equally_probable() -> None:
    prices = np.array([[100, 200, 400], [100, 200, 400], [50, 150, 350]])
    low, high = 540, 660
    inside = [c for c in product(range(3), repeat=3) if low <= prices[np.arange(3), c].sum() <= high]
    assert len(inside) > 3
    rng = np.random.default_rng(0)
    draws = 300 * len(inside)
    counts = dict.fromkeys(inside, 0)
    for _ in range(draws):
        counts[tuple(int(n) for n in sample(prices, low, high, rng))] += 1
    chi_square = sum((n - 300) ** 2 / 300 for n in counts.values())
    assert chi_square < 3 * len(inside)
