"""The power rule, and alpha from a budget."""

import numpy as np
import pytest

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.evidence import Evidence
from pipeline.data.schema import Field, Schema
from pipeline.embeddings.cost import full_tables, prices, spent
from pipeline.methods import mde

SCHEMA = Schema((Field("user", 6400), Field("item", 1600), Field("age", 4), Field("city", 64)))
SIZES, DIM = SCHEMA.cardinalities, 16
FULL = full_tables(SCHEMA, DIM).bytes


def given(**more) -> Evidence:
    candidates = ((1, 16),) * 4
    return Evidence(SCHEMA, DIM, candidates, prices(mde.build, SCHEMA, candidates, DIM), FULL, **more)


def size(dims: np.ndarray) -> int:
    named = dict(zip(SCHEMA.names, dims.tolist(), strict=True))
    return spent(mde.build, SCHEMA, DIM, Allocation("mde", named)).bytes


def test_the_rule_by_hand() -> None:
    # n / n_min = 1600, 400, 1, 16
    assert mde.dimensions(SIZES, DIM, 0.0).tolist() == [16, 16, 16, 16]
    assert mde.dimensions(SIZES, DIM, 0.25).tolist() == [3, 4, 16, 8]  # 16 / (6.32, 4.47, 1, 2) = 2.53, 3.58, 16, 8
    assert mde.dimensions(SIZES, DIM, 0.25, True).tolist() == [2, 4, 16, 8]  # log2 of them: 1.34, 1.84
    assert mde.dimensions(SIZES, DIM, 5.0).tolist() == [1, 1, 16, 1]


@pytest.mark.parametrize("powers", [False, True])
def test_every_choice_of_dimensions_that_some_alpha_gives_is_looked_at_once(powers: bool) -> None:
    looked = [tuple(mde.dimensions(SIZES, DIM, alpha, powers)) for alpha in mde.alphas(SIZES, DIM, powers)]
    assert len(set(looked)) == len(looked) and looked[0] == ((16,) * 4)
    dense = [tuple(mde.dimensions(SIZES, DIM, alpha, powers)) for alpha in np.linspace(0, 4, 20_001)]
    assert set(dense) == set(looked)


@pytest.mark.parametrize("powers", [False, True])
@pytest.mark.parametrize("budget", [FULL, FULL // 2, FULL // 4, FULL // 10])
def test_the_budget_gets_the_smallest_alpha_that_keeps_it_projections_counted(budget: int, powers: bool) -> None:
    dims = np.array(list(mde.derive(given(budget=budget), powers_of_two=powers).dims.values()))
    assert size(dims) <= budget
    for alpha in np.linspace(0, 4, 4001):  # from below: the first that fits
        tried = mde.dimensions(SIZES, DIM, alpha, powers)
        if size(tried) <= budget:
            assert tried.tolist() == dims.tolist()
            break


def test_without_a_budget_it_is_a_quarter_and_a_match_is_none_larger() -> None:
    assert mde.derive(given()) == mde.derive(given(budget=FULL // 4))


def test_a_budget_that_no_alpha_keeps_is_refused_with_the_least_of_any() -> None:
    least = 4 * (6400 + 1600 + 64 + 3 * DIM + 4 * DIM)
    assert list(mde.derive(given(budget=least)).dims.values()) == [1, 1, 16, 1]
    with pytest.raises(ValueError, match=f"no alpha makes {least - 1:,} bytes or less, the least is {least:,}; raise"):
        mde.derive(given(budget=least - 1))


def test_fields_of_one_size_have_one_dimension_whatever_the_budget() -> None:
    twins = Schema((Field("a", 9), Field("b", 9)))
    candidates = ((1,), (1,))
    evidence = Evidence(twins, 4, candidates, prices(mde.build, twins, candidates, 4), 2 * 9 * 16, budget=2 * 9 * 16)
    assert mde.derive(evidence).dims == {"a": 4, "b": 4}
