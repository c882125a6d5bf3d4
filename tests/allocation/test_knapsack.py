"""The knapsack against brute force and an integer programme."""

from itertools import product

import numpy as np
import pytest
from scipy.optimize import Bounds, LinearConstraint, milp

from pipeline.allocation import knapsack
from pipeline.allocation.budget import NO_CANDIDATE
from pipeline.allocation.knapsack import most_probable, within_budget


def brute_force(scores: np.ndarray, prices: np.ndarray, budget: int) -> float | None:
    best = None
    for choice in product(range(scores.shape[1]), repeat=len(scores)):
        rows = np.arange(len(scores))
        if prices[rows, choice].sum() <= budget:
            total = scores[rows, choice].sum()
            best = total if best is None else max(best, total)
    return best


def test_the_choice_is_the_best_within_the_budget() -> None:
    for seed in range(25):
        rng = np.random.default_rng(seed)
        fields, number = rng.integers(1, 6), rng.integers(1, 5)
        scores = np.log(rng.dirichlet(np.ones(number), fields))
        prices = rng.integers(0, 50, (fields, number))  # in no order, because prices need not rise with dimensions
        budget = int(rng.integers(prices.min(1).sum(), prices.max(1).sum() + 1))
        chosen = within_budget(scores, prices, budget)
        rows = np.arange(fields)
        assert prices[rows, chosen].sum() <= budget, seed
        assert scores[rows, chosen].sum() == pytest.approx(brute_force(scores, prices, budget)), seed


def test_a_budget_that_no_choice_fits_is_refused_with_the_least_possible() -> None:
    with pytest.raises(ValueError, match="no choice costs 29 bytes or less: the least is 30 bytes"):
        within_budget(np.zeros((2, 2)), np.array([[10, 20], [20, 30]]), 29)


def test_the_most_probable_candidate_is_taken_and_ties_go_to_the_smaller() -> None:
    scores = np.array([[-1.0, -1.0, -2.0], [-2.0, -0.5, 0.0]])
    assert most_probable(scores, [(2, 4, 8), (2, 4)]).tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"one of the candidates \[2\] must have a score above -inf"):
        most_probable(np.array([[-np.inf]]), [(2,)])


def test_a_score_of_minus_infinity_is_not_a_candidate() -> None:
    scores = np.array([[-1.0, -np.inf], [-2.0, -1.0]])
    assert within_budget(scores, np.array([[4, 4], [4, 8]]), 100).tolist() == [0, 1]
    short = np.array([[4, np.iinfo(np.int64).max], [4, 8]])  # the first field has one candidate only
    assert within_budget(scores, short, 8).tolist() == [0, 0]
    with pytest.raises(ValueError, match="the least is 12 bytes"):
        within_budget(np.array([[-np.inf, 0.0], [0.0, 0.0]]), np.array([[1, 8], [4, 4]]), 11)


@pytest.mark.parametrize("number", [5, 16])
def test_the_choice_on_39_fields_is_the_optimum_of_an_integer_programme(number: int) -> None:
    rng = np.random.default_rng(number)
    dims = np.arange(1, number + 1) * 2
    cardinalities = np.geomspace(3, 1e6, 39).astype(np.int64)
    prices = 4 * (cardinalities[:, None] * dims + np.where(dims < dims[-1], dims * dims[-1], 0))
    scores = np.log(rng.dirichlet(np.ones(number), 39))
    budget = int(0.4 * prices.max(1).sum())
    chosen = within_budget(scores, prices, budget)
    rows = np.arange(39)
    assert prices[rows, chosen].sum() <= budget
    one_each = np.kron(np.eye(39), np.ones(number))
    solved = milp(
        -scores.ravel(),
        constraints=[LinearConstraint(prices.ravel() / budget, ub=1), LinearConstraint(one_each, 1, 1)],
        integrality=np.ones(scores.size),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0},
    )
    assert solved.success
    assert scores[rows, chosen].sum() == pytest.approx(-solved.fun, abs=1e-6)


@pytest.mark.parametrize("kind", ["any", "ties", "small next to large", "copies"])
def test_the_choice_is_the_same_if_no_candidate_is_removed_first(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    possible, removed = knapsack._possible, 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        fields, number = int(rng.integers(1, 25)), int(rng.integers(2, 8))
        scores, prices = rng.normal(size=(fields, number)), rng.integers(0, 10**9, (fields, number))
        if kind == "ties":
            scores, prices = rng.integers(-4, 1, (fields, number)).astype(float), rng.integers(0, 6, (fields, number))
        if kind == "small next to large":
            scores *= rng.choice([1e-6, 1, 1e3], (fields, 1))
            prices = np.sort(rng.integers(1, 40, number)) * rng.integers(1, 10**6, (fields, 1))
        if kind == "copies":
            scores, prices = np.tile(scores[:1], (fields, 1)), np.tile(prices[:1] % 50, (fields, 1))
        scores[:, 1:][rng.random((fields, number - 1)) < 0.1] = -np.inf
        budget = int(rng.integers(prices.max(1).sum() // 2, prices.max(1).sum() + 2))
        budget = max(budget, int(np.where(scores == -np.inf, NO_CANDIDATE, prices).min(1).sum()))
        removing = within_budget(scores, prices, budget)
        removed += int((~possible(knapsack._losses(scores), prices, budget)).sum())
        with monkeypatch.context() as patch:
            patch.setattr(knapsack, "_possible", lambda losses, prices, budget: losses < NO_CANDIDATE)
            assert within_budget(scores, prices, budget).tolist() == removing.tolist(), seed
    assert removed > 1000


def test_equal_scores_go_to_the_fewest_bytes() -> None:
    rng = np.random.default_rng(0)
    prices = rng.integers(1, 10**6, (39, 5))
    chosen = within_budget(np.full((39, 5), np.log(0.2)), prices, int(prices.max(1).sum()))
    assert prices[np.arange(39), chosen].tolist() == prices.min(1).tolist()


def test_a_diverged_search_is_refused() -> None:
    with pytest.raises(ValueError, match="field 1, candidate 0"):
        within_budget(np.array([[0.0, 0.0], [np.nan, 0.0]]), np.ones((2, 2), np.int64), 10)


def test_if_one_field_must_be_kept_the_choice_is_the_best_that_keeps_one() -> None:
    for seed in range(15):
        rng = np.random.default_rng(seed)
        scores, prices = rng.normal(-1, 1, (3, 3)), rng.integers(1, 50, (3, 3))
        prices[:, 0] = scores[:, 0] = 0  # candidate 0 drops the field, and is usually the best
        budget = int(rng.integers(prices[:, 1:].min(), 100))
        best = max(
            sum(scores[f, n] for f, n in enumerate(choice))
            for choice in product(range(3), repeat=3)
            if any(choice) and sum(prices[f, n] for f, n in enumerate(choice)) <= budget
        )
        chosen = within_budget(scores, prices, budget, drop_all=False)
        assert chosen.any() and prices[np.arange(3), chosen].sum() <= budget, seed
        assert scores[np.arange(3), chosen].sum() == pytest.approx(best), seed
        least = int(prices[:, 1:].min())
        with pytest.raises(ValueError, match=f"the least is {least} bytes; raise the budget"):
            within_budget(scores, prices, least - 1, drop_all=False)
