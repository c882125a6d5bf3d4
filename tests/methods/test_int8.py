"""The controls of few bits: how wide they are. How they are rounded is tested in test_quantised."""

import pytest
import torch

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.evidence import Evidence
from pipeline.data.schema import Field, Schema
from pipeline.embeddings.cost import full_tables, prices, spent
from pipeline.methods import autodim, autodim_int8, int4, int8, uniform

SCHEMA = Schema((Field("user", 70), Field("item", 50), Field("age", 3)))
DIM, ROWS = 8, 123
FULL = full_tables(SCHEMA, DIM).bytes


def given(method, **more) -> Evidence:
    candidates = ((1, 2, 4, 8),) * 3
    return Evidence(SCHEMA, DIM, candidates, prices(method.build, SCHEMA, candidates, DIM), FULL, **more)


@pytest.mark.parametrize("method", [int8, int4])
def test_without_a_budget_the_full_dimension_is_rounded(method) -> None:
    assert set(method.derive(given(method)).dims.values()) == {DIM}


@pytest.mark.parametrize(
    ("method", "budget", "dim"),
    [
        (int8, ROWS * (8 + 2), 8),
        (int8, ROWS * (8 + 2) - 1, 7),
        (int8, ROWS * 3, 1),
        (int4, ROWS * (4 + 2) - 1, 6),
        (int4, ROWS * (2 + 2), 4),  # not 3, which takes as many whole bytes
        (int4, ROWS * (1 + 2), 2),
    ],
)
def test_as_wide_as_the_budget_allows_scales_included(method, budget: int, dim: int) -> None:
    allocation = method.derive(given(method, budget=budget))
    assert set(allocation.dims.values()) == {dim}
    assert spent(method.build, SCHEMA, DIM, allocation).bytes <= budget


def test_before_rounding_the_model_is_the_uniform_one_of_that_width() -> None:
    dims = dict.fromkeys(SCHEMA.names, 4)
    torch.manual_seed(0)
    plain = uniform.build(SCHEMA, DIM, Allocation("uniform", dims))
    torch.manual_seed(0)
    rounded = int8.build(SCHEMA, DIM, Allocation("int8", dims))
    assert plain.dim == rounded.dim == 4 and torch.equal(plain.tables["4"].weight, rounded.tables["4"].weight)


def test_candidates_of_autodim_int8_are_priced_in_bytes_of_codes_scales_and_projections() -> None:
    priced = given(autodim_int8).prices
    assert priced[0].tolist() == [70 * (d + 2) + (4 * d * DIM if d < DIM else 0) for d in (1, 2, 4, 8)]
    plain = given(autodim).prices
    assert plain[0].tolist() == [4 * (70 * d + (d * DIM if d < DIM else 0)) for d in (1, 2, 4, 8)]
