"""SSEDS: dimensions by saliency within bytes; the saliencies themselves are tested in test_saliency."""

import itertools

import numpy as np
import pytest

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.budget import NO_CANDIDATE
from pipeline.allocation.evidence import Evidence
from pipeline.data.schema import Field, Schema
from pipeline.embeddings.cost import full_tables, prices, spent
from pipeline.methods import sseds

SCHEMA = Schema((Field("user", 70), Field("item", 50), Field("age", 3)))
DIM = 4
CANDIDATES = tuple(map(tuple, sseds.candidates(SCHEMA, DIM)))
PRICES = prices(sseds.build, SCHEMA, CANDIDATES, DIM)
FULL = full_tables(SCHEMA, DIM).bytes


def given(saliency: np.ndarray, budget: int | None = None) -> Evidence:
    return Evidence(SCHEMA, DIM, CANDIDATES, PRICES, FULL, found={"saliency": saliency}, budget=budget)


def test_every_dimension_is_a_candidate_and_none_is_free_but_0() -> None:
    assert CANDIDATES == ((0, 1, 2, 3, 4),) * 3
    assert (PRICES[:, 0] == 0).all() and (PRICES[:, 1:] > 0).all() and (PRICES < NO_CANDIDATE).all()


@pytest.mark.parametrize("seed", range(10))
def test_the_kept_dimensions_have_the_largest_sum_of_saliencies_of_all_that_fit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    saliency = rng.random((3, DIM)) ** 2 * [[5], [1], [2]]
    budget = int(rng.integers(PRICES[PRICES > 0].min(), FULL))
    sums = [[0, *itertools.accumulate(sorted(row, reverse=True))] for row in saliency]
    best = max(
        sum(sums[f][d] for f, d in enumerate(dims))
        for dims in itertools.product(range(DIM + 1), repeat=3)
        if sum(PRICES[f, d] for f, d in enumerate(dims)) <= budget
    )
    allocation = sseds.derive(given(saliency, budget))
    assert sum(sums[f][d] for f, d in enumerate(allocation.dims.values())) == pytest.approx(best)
    assert spent(sseds.build, SCHEMA, DIM, allocation).bytes <= budget


def test_by_row_a_dimension_of_many_values_has_to_be_worth_more() -> None:
    saliency = np.array([[0.7] * 4, [0.5] * 4, [0.03] * 4])  # of each of 70, 50 and 3 values: 0.01
    equal = saliency.copy()
    equal[1] = 0.6
    whole, by_row = (sseds.derive(given(equal, FULL // 2), per_row=option).dims for option in (False, True))
    assert by_row["item"] >= whole["item"] and by_row["item"] > by_row["user"]
    assert by_row["age"] >= whole["age"]


def test_a_search_that_saw_nothing_still_keeps_a_field_and_says_so_where_none_fits() -> None:
    allocation = sseds.derive(given(np.zeros((3, DIM))))
    assert allocation == Allocation("sseds", {"user": 0, "item": 0, "age": 1})
    least = int(PRICES[PRICES > 0].min())
    assert sseds.derive(given(np.zeros((3, DIM)), least)).dims == {"user": 0, "item": 0, "age": 1}
    with pytest.raises(ValueError, match=f"least is {least} bytes; raise the budget"):
        sseds.derive(given(np.ones((3, DIM)), least - 1))
