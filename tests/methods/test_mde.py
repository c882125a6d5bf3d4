"""The power rule, and alpha from a budget."""

import numpy as np
import pytest

from pipeline.data.schema import Field, Schema
from pipeline.embeddings.cost import full_tables, prices
from pipeline.embeddings.mixed import MixedTables
from pipeline.methods import mde
from tests.contracts import evidence

SCHEMA = Schema((Field("user", 6400), Field("item", 1600), Field("age", 4), Field("city", 64)))
SIZES, DIM = SCHEMA.cardinalities, 16
FULL = full_tables(SCHEMA, DIM).bytes
PRICES = prices(MixedTables, SCHEMA, [range(1, DIM + 1)] * 4, DIM)


def size(dims: np.ndarray) -> int:
    return int(PRICES[np.arange(4), dims - 1].sum())


def derived(budget: int | None, **options) -> list[int]:
    return list(mde.derive(evidence("mde", SCHEMA, DIM, budget=budget), **options).dims.values())


def test_the_rule_by_hand() -> None:
    # n / n_min = 1600, 400, 1, 16
    assert mde.dimensions(SIZES, DIM, 0.0).tolist() == [16, 16, 16, 16]
    assert mde.dimensions(SIZES, DIM, 0.25).tolist() == [3, 4, 16, 8]  # 16 / (6.32, 4.47, 1, 2) = 2.53, 3.58, 16, 8
    assert mde.dimensions(SIZES, DIM, 0.25, True).tolist() == [2, 4, 16, 8]  # log2 of them: 1.34, 1.84
    assert mde.dimensions(SIZES, DIM, 5.0).tolist() == [1, 1, 16, 1]


@pytest.mark.parametrize("powers", [False, True])
def test_every_choice_of_dimensions_that_some_alpha_gives_is_tried_once(powers: bool) -> None:
    tried = [tuple(mde.dimensions(SIZES, DIM, alpha, powers)) for alpha in mde.alphas(SIZES, DIM, powers)]
    assert len(set(tried)) == len(tried) and tried[0] == ((16,) * 4)
    dense = [tuple(mde.dimensions(SIZES, DIM, alpha, powers)) for alpha in np.linspace(0, 4, 5001)]
    assert set(dense) == set(tried)


@pytest.mark.parametrize("powers", [False, True])
def test_the_smallest_alpha_that_fits_the_budget_is_taken_with_projections_counted(powers: bool) -> None:
    from_below = [mde.dimensions(SIZES, DIM, alpha, powers) for alpha in np.linspace(0, 4, 4001)]
    for budget in (FULL, FULL // 2, FULL // 4, FULL // 10):
        first = next(dims for dims in from_below if size(dims) <= budget)
        assert derived(budget, powers_of_two=powers) == first.tolist(), budget


def test_without_a_budget_the_limit_is_a_quarter() -> None:
    assert derived(None) == derived(FULL // 4)


def test_a_budget_that_no_alpha_fits_is_refused_with_the_least_of_any() -> None:
    least = 4 * (6400 + 1600 + 64 + 3 * DIM + 4 * DIM)
    assert derived(least) == [1, 1, 16, 1]
    with pytest.raises(ValueError, match=f"no alpha makes {least - 1:,} bytes or less, the least is {least:,}; raise"):
        derived(least - 1)


def test_fields_of_equal_size_have_equal_dimensions() -> None:
    twins = Schema((Field("a", 9), Field("b", 9)))
    assert mde.derive(evidence("mde", twins, 4, budget=2 * 9 * 16)).dims == {"a": 4, "b": 4}
