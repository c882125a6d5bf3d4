"""SSEDS: dimensions by saliency within bytes; saliencies are tested in test_gates."""

import itertools

import numpy as np
import pytest

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.budget import NO_CANDIDATE
from pipeline.allocation.evidence import Evidence
from pipeline.data.schema import Field, Schema
from pipeline.embeddings.cost import full_tables
from pipeline.methods import sseds
from tests.contracts import evidence

SCHEMA = Schema((Field("user", 70), Field("item", 50), Field("age", 3)))
DIM = 4
FULL = full_tables(SCHEMA, DIM).bytes
ASKED = evidence("sseds", SCHEMA, DIM)
PRICES = ASKED.prices


def given(saliency: np.ndarray, budget: int | None = None) -> Evidence:
    return evidence("sseds", SCHEMA, DIM, arrays={"saliency": saliency}, budget=budget)


def test_every_dimension_is_a_candidate_and_only_0_is_free() -> None:
    assert ASKED.candidates == ((0, 1, 2, 3, 4),) * 3
    assert (PRICES[:, 0] == 0).all() and (PRICES[:, 1:] > 0).all() and (PRICES < NO_CANDIDATE).all()


def test_the_kept_dimensions_have_the_largest_sum_of_saliencies_of_all_that_fit() -> None:
    for seed in range(8):
        rng = np.random.default_rng(seed)
        saliency = rng.random((3, DIM)) ** 2 * [[5], [1], [2]]
        budget = int(rng.integers(PRICES[PRICES > 0].min(), FULL))
        sums = [[0, *itertools.accumulate(sorted(row, reverse=True))] for row in saliency]
        best = max(
            sum(sums[f][d] for f, d in enumerate(dims))
            for dims in itertools.product(range(DIM + 1), repeat=3)
            if sum(PRICES[f, d] for f, d in enumerate(dims)) <= budget
        )
        dims = sseds.derive(given(saliency, budget)).dims.values()
        assert sum(sums[f][d] for f, d in enumerate(dims)) == pytest.approx(best), seed
        assert sum(int(PRICES[f, d]) for f, d in enumerate(dims)) <= budget, seed


def test_per_row_a_dimension_of_many_values_must_be_worth_more() -> None:
    saliency = np.array([[0.7] * 4, [0.6] * 4, [0.03] * 4])  # of 70, 50 and 3 values
    whole, by_row = (sseds.derive(given(saliency, FULL // 2), per_row=option).dims for option in (False, True))
    assert by_row["item"] >= whole["item"] and by_row["item"] > by_row["user"]
    assert by_row["age"] >= whole["age"]


def test_without_any_saliency_one_field_is_kept_and_a_budget_too_small_for_one_is_refused() -> None:
    allocation = sseds.derive(given(np.zeros((3, DIM))))
    assert allocation == Allocation("sseds", {"user": 0, "item": 0, "age": 1})
    least = int(PRICES[PRICES > 0].min())
    assert sseds.derive(given(np.zeros((3, DIM)), least)).dims == {"user": 0, "item": 0, "age": 1}
    with pytest.raises(ValueError, match=f"least is {least} bytes; raise the budget"):
        sseds.derive(given(np.ones((3, DIM)), least - 1))
