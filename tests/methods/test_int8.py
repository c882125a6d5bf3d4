"""The controls of a few bits: how wide they are. How they are rounded is tested in test_rounded."""

import pytest
import torch

from pipeline.allocation.allocation import Allocation
from pipeline.data.schema import Field, Schema
from pipeline.embeddings.cost import spent
from pipeline.methods import int4, int8, uniform
from tests.contracts import evidence

SCHEMA = Schema((Field("user", 70), Field("item", 50), Field("age", 3)))
DIM, ROWS = 8, 123
CANDIDATES = ((1, 2, 4, 8),) * 3


def test_without_a_budget_the_full_dimension_is_rounded() -> None:
    for name, method in (("int8", int8), ("int4", int4)):
        assert set(method.derive(evidence(name, SCHEMA, DIM)).dims.values()) == {DIM}


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
def test_they_are_as_wide_as_the_budget_allows_with_scales_included(method, budget: int, dim: int) -> None:
    name = method.__name__.rpartition(".")[2]
    allocation = method.derive(evidence(name, SCHEMA, DIM, budget=budget))
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
    priced = evidence("autodim_int8", SCHEMA, DIM, CANDIDATES).prices
    assert priced[0].tolist() == [70 * (d + 2) + (4 * d * DIM if d < DIM else 0) for d in (1, 2, 4, 8)]
    plain = evidence("autodim", SCHEMA, DIM, CANDIDATES).prices
    assert plain[0].tolist() == [4 * (70 * d + (d * DIM if d < DIM else 0)) for d in (1, 2, 4, 8)]
