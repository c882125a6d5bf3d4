"""Bytes are those of the tensors that ship; prices come from the same ruler."""

import numpy as np
import pytest
import torch

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.budget import NO_CANDIDATE, in_bytes, largest
from pipeline.data.schema import Field, Schema
from pipeline.embeddings.cost import bytes_per_field, cost, full_tables, nearest_uniform, prices
from pipeline.embeddings.mixed import MixedTables

SCHEMA = Schema((Field("user", 70), Field("item", 50), Field("tags", 3, width=4)))


def build(schema: Schema, dim: int, allocation: Allocation) -> MixedTables:
    return MixedTables(schema, allocation.dims, dim)


def test_cost_counts_stored_bytes_and_numbers_by_kind() -> None:
    measured = cost(
        {
            "table.2": torch.zeros(10, 2),
            "table.codes": torch.zeros(7, dtype=torch.int8),
            "projection.2": torch.zeros(2, 4, device="meta"),
            "mask": torch.zeros(5, dtype=torch.bool),
        }
    )
    assert measured.bytes_by_kind == {"table": 80 + 7, "projection": 32, "mask": 5}
    assert measured.params_by_kind == {"table": 27, "projection": 8, "mask": 5}
    assert (measured.bytes, measured.params, measured.table_params) == (124, 40, 27)


def test_a_sparse_tensor_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"table\.pruned"):
        cost({"table.pruned": torch.eye(3).to_sparse()})


def test_the_price_is_not_monotone_in_the_dimension() -> None:
    found = prices(build, Schema((Field("small", 10),)), [(2, 4, 8, 16)], 16)
    assert (found // 4).tolist() == [[52, 104, 208, 160]]


def test_prices_add_up_to_the_cost_of_the_whole() -> None:
    dims = {"user": 4, "item": 8, "tags": 2}
    whole = cost(MixedTables(SCHEMA, dims, 8).packed())
    assert whole.bytes == sum(bytes_per_field(build, SCHEMA, dims, 8).values())
    assert whole.bytes == 4 * (70 * 4 + 50 * 8 + 3 * 2 + 4 * 8 + 2 * 8)
    assert whole.table_params == 70 * 4 + 50 * 8 + 3 * 2


def test_dropping_is_free_and_missing_candidates_have_no_price() -> None:
    found = prices(build, SCHEMA, [(0, 8), (2, 4, 8), (8,)], 8)
    assert found[0].tolist() == [0, 70 * 8 * 4, NO_CANDIDATE]
    assert found[2].tolist() == [3 * 8 * 4, NO_CANDIDATE, NO_CANDIDATE]
    assert found.dtype == np.int64


def test_fields_of_one_size_are_measured_once() -> None:
    asked = []

    def counted(schema: Schema, dim: int, allocation: Allocation) -> MixedTables:
        asked.append(allocation.dims)
        return build(schema, dim, allocation)

    twins = Schema((Field("a", 9), Field("b", 9), Field("c", 9, width=2)))
    prices(counted, twins, [(2, 4)] * 3, 4)
    assert len(asked) == 4


def test_a_billion_values_are_priced_without_memory() -> None:
    huge = Schema((Field("huge", 10**9),))
    assert prices(build, huge, [(64,)], 64).item() == 256 * 10**9
    assert full_tables(huge, 64).bytes == 256 * 10**9


def test_candidates_are_needed_for_every_field() -> None:
    with pytest.raises(ValueError, match="candidates for 1 fields"):
        prices(build, SCHEMA, [(2, 4)], 8)


@pytest.mark.parametrize(("budget", "expected"), [(2, 2), (5000, 5000), (0.25, 250), (1.0, 1000), (0.0015, 1)])
def test_a_budget_is_bytes_or_a_share(budget: object, expected: int) -> None:
    assert in_bytes(budget, 1000) == expected


@pytest.mark.parametrize("budget", [0, 1, -5, 0.0, 1.5, -0.1, True, "0.5", None, float("nan")])
def test_any_other_budget_is_refused_with_its_value(budget: object) -> None:
    with pytest.raises(ValueError, match=f"however: {budget!r}"):
        in_bytes(budget, 1000)


def test_the_nearest_uniform_dimension_and_its_gap() -> None:
    values = 70 + 50 + 3
    found = nearest_uniform(SCHEMA, 8, values * 4 * 3 + 100)
    assert (found.dim, found.bytes) == (3, values * 12)
    assert found.gap == pytest.approx(values * 12 / (values * 12 + 100) - 1)
    assert nearest_uniform(SCHEMA, 8, 10**9).dim == 8
    assert nearest_uniform(SCHEMA, 8, 1).dim == 1
    assert nearest_uniform(SCHEMA, 8, values * 4 * 5 // 2).dim == 2  # halfway between 2 and 3


def test_the_largest_number_within_a_limit_is_found_and_a_limit_below_the_least_is_refused() -> None:
    def size(n: int) -> int:
        return 100 + 12 * n

    assert [largest(size, 50, limit, "robe") for limit in (112, 123, 124, 699, 700, 10**9)] == [1, 1, 2, 49, 50, 50]
    with pytest.raises(ValueError, match="robe: 111 bytes are too few, the least is 112; raise the budget"):
        largest(size, 50, 111, "robe")
