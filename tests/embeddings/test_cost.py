"""Bytes are those of the served tensors, and prices are measured in the same way."""

import numpy as np
import pytest
import torch

from pipeline.allocation.budget import NO_CANDIDATE
from pipeline.data.schema import Field, Schema
from pipeline.embeddings.cost import (
    bytes_per_field,
    cost,
    fill_limit,
    full_tables,
    nearest_uniform,
    prices,
    widest_uniform,
)
from pipeline.embeddings.mixed import MixedTables
from pipeline.methods import hashing
from tests.contracts import evidence

SCHEMA = Schema((Field("user", 70), Field("item", 50), Field("tags", 3, width=4)))


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
    priced = prices(MixedTables, Schema((Field("small", 10),)), [(2, 4, 8, 16)], 16)
    assert (priced // 4).tolist() == [[52, 104, 208, 160]]


def test_prices_add_up_to_the_cost_of_the_whole() -> None:
    dims = {"user": 4, "item": 8, "tags": 2}
    whole = cost(MixedTables(SCHEMA, dims, 8).packed())
    assert whole.bytes == sum(bytes_per_field(MixedTables, SCHEMA, dims, 8).values())
    assert whole.bytes == 4 * (70 * 4 + 50 * 8 + 3 * 2 + 4 * 8 + 2 * 8)
    assert whole.table_params == 70 * 4 + 50 * 8 + 3 * 2


def test_dropping_is_free_and_missing_candidates_have_no_price() -> None:
    priced = prices(MixedTables, SCHEMA, [(0, 8), (2, 4, 8), (8,)], 8)
    assert priced[0].tolist() == [0, 70 * 8 * 4, NO_CANDIDATE]
    assert priced[2].tolist() == [3 * 8 * 4, NO_CANDIDATE, NO_CANDIDATE]
    assert priced.dtype == np.int64


def test_fields_of_one_size_are_measured_once() -> None:
    asked = []

    def counted(schema: Schema, dims: dict[str, int], dim: int) -> MixedTables:
        asked.append(dims)
        return MixedTables(schema, dims, dim)

    twins = Schema((Field("a", 9), Field("b", 9), Field("c", 9, width=2)))
    prices(counted, twins, [(2, 4)] * 3, 4)
    assert len(asked) == 4


def test_a_billion_values_are_priced_without_memory() -> None:
    huge = Schema((Field("huge", 10**9),))
    assert prices(MixedTables, huge, [(64,)], 64).item() == 256 * 10**9
    assert full_tables(huge, 64).bytes == 256 * 10**9


def test_candidates_must_be_given_for_every_field() -> None:
    with pytest.raises(ValueError, match="candidates must be given for 3 fields, got 1"):
        prices(MixedTables, SCHEMA, [(2, 4)], 8)


def test_the_widest_uniform_dimension_fits_the_limit() -> None:
    def make(d: int) -> MixedTables:
        return MixedTables(SCHEMA, dict.fromkeys(SCHEMA.names, d), d)

    values = 70 + 50 + 3
    assert [widest_uniform(make, 8, limit, "uniform").dim for limit in (values * 12, values * 12 - 1, 10**9)] == [
        3,
        2,
        8,
    ]
    with pytest.raises(ValueError, match=f"uniform: no dimension makes 100 bytes or less, the least is {values * 4}; "):
        widest_uniform(make, 8, 100, "uniform")


def test_the_nearest_uniform_dimension_and_its_gap() -> None:
    values = 70 + 50 + 3
    nearest = nearest_uniform(SCHEMA, 8, values * 4 * 3 + 100)
    assert (nearest.dim, nearest.bytes) == (3, values * 12)
    assert nearest.gap == pytest.approx(values * 12 / (values * 12 + 100) - 1)
    assert nearest_uniform(SCHEMA, 8, 10**9).dim == 8
    assert nearest_uniform(SCHEMA, 8, 1).dim == 1
    assert nearest_uniform(SCHEMA, 8, values * 4 * 5 // 2).dim == 2  # halfway between 2 and 3


def test_an_allocation_fills_the_limit() -> None:
    given = evidence("hashing", SCHEMA, 8, budget=330)

    def make(rows: int):
        return given.allocation(8, {"rows": rows, "seed": 0})

    assert fill_limit(given, hashing.build, make, 123) == make(10)  # rows of 32 bytes
    assert fill_limit(given, hashing.build, make, 7) == make(7)
