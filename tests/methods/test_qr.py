"""Quotient and remainder: composed vectors against plain indexing, and the rows that a budget buys."""

import numpy as np
import pytest
import torch

from pipeline.allocation.evidence import Evidence
from pipeline.data.schema import Field, Schema
from pipeline.embeddings.batch import Lookup
from pipeline.embeddings.cost import full_tables, spent
from pipeline.embeddings.table import INIT_SD
from pipeline.methods import qr
from tests.contracts import evidence

SCHEMA = Schema((Field("user", 900), Field("age", 3), Field("item", 401), Field("city", 150)))
DIM = 4


def given(**more) -> Evidence:
    return evidence("qr", SCHEMA, DIM, **more)


@pytest.mark.parametrize("operation", ["mult", "add"])
def test_a_value_s_vector_is_composed_of_those_of_its_remainder_and_its_quotient(operation: qr.Operation) -> None:
    embedding = qr.Compositional(SCHEMA, DIM, {"user": 100, "item": 21}, operation)
    remainder, quotient = embedding.remainder.weight, embedding.quotient.weight
    assert len(remainder) == 100 + 3 + 21 + 150 and len(quotient) == 9 + 20
    ids = torch.tensor([[899, 2, 400, 149], [0, 0, 0, 0], [100, 1, 20, 7], [899, 1, 42, 7]], dtype=torch.int32)

    def composed(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a * b if operation == "mult" else a + b

    expected = [
        torch.stack(
            [
                composed(remainder[user % 100], quotient[user // 100]),
                remainder[100 + age],
                composed(remainder[103 + item % 21], quotient[9 + item // 21]),
                remainder[124 + city],
            ]
        )
        for user, age, item, city in ids.tolist()
    ]
    torch.testing.assert_close(embedding(Lookup(SCHEMA)(ids)), torch.stack(expected))


def test_the_two_partitions_together_tell_all_values_apart() -> None:
    allocation = qr.derive(given(budget=full_tables(SCHEMA, DIM).bytes // 4))
    for field in SCHEMA.fields:
        c = allocation.settings["remainders"].get(field.name, field.cardinality)
        assert len({(x % c, x // c) for x in range(field.cardinality)}) == field.cardinality


@pytest.mark.parametrize("operation", ["mult", "add"])
def test_a_composed_vector_starts_with_the_standard_deviation_of_a_plain_one(operation: qr.Operation) -> None:
    large = Schema((Field("user", 40_000), Field("item", 4000)))
    torch.manual_seed(0)
    embedding = qr.Compositional(large, 16, {"user": 200}, operation)
    ids = torch.stack([torch.arange(40_000), torch.arange(40_000) % 4000], 1).int()
    embedded = embedding(Lookup(large)(ids)).detach()
    assert float(embedded[:, 0].std()) == pytest.approx(INIT_SD, rel=0.1)
    assert float(embedded[:, 1].std()) == pytest.approx(INIT_SD, rel=0.05)


def test_fields_above_the_threshold_keep_the_same_share_of_rows_but_at_least_the_square_root() -> None:
    allocation = qr.derive(given(budget=4 * DIM * 500))
    remainders = allocation.settings["remainders"]
    assert set(remainders) == {"user", "item"}
    assert remainders["user"] / 900 == pytest.approx(remainders["item"] / 401, abs=0.003)
    rows = sum(c + -(-SCHEMA.fields[f].cardinality // c) for f, c in ((0, remainders["user"]), (2, remainders["item"])))
    assert 500 - 4 <= rows + 153 <= 500
    least = qr.derive(given(budget=4 * DIM * (30 + 30 + 21 + 20 + 153)))
    assert least.dims["user"] == DIM and least.settings["remainders"] == {"user": 30, "item": 21}


def test_no_c_takes_fewer_rows_than_the_square_root() -> None:
    for n in (201, 400, 401, 900, 5000):
        root = int(np.ceil(n**0.5))
        assert root + -(-n // root) == min(c + -(-n // c) for c in range(1, n + 1))


def test_if_even_the_fewest_rows_are_too_many_the_dimension_is_lowered() -> None:
    allocation = qr.derive(given(budget=4 * 3 * 254))
    assert set(allocation.dims.values()) == {3}
    assert spent(qr.build, SCHEMA, DIM, allocation).bytes == 4 * 3 * 254
    assert qr.build(SCHEMA, DIM, allocation).dim == 3


def test_a_field_that_composing_does_not_make_smaller_has_a_plain_table() -> None:
    assert qr.derive(given(budget=10**6)).settings["remainders"] == {}
    assert "age" not in qr.derive(given(budget=9000), threshold=1).settings["remainders"]


def test_gradients_of_both_tables_are_sparse_over_the_rows_that_were_looked_up() -> None:
    embedding = qr.Compositional(SCHEMA, DIM, {"user": 100}, "mult")
    embedding(Lookup(SCHEMA)(torch.tensor([[205, 1, 3, 4], [305, 1, 3, 5]], dtype=torch.int32))).sum().backward()
    touched = {key: p.grad.coalesce().indices()[0].tolist() for key, p in embedding.named_parameters()}
    assert touched == {"remainder.weight": [5, 101, 106, 508, 509], "quotient.weight": [2, 3]}


def test_settings_that_do_not_fit_the_schema_are_refused() -> None:
    with pytest.raises(ValueError, match=r"remainders must be 1 to the field's cardinality, got {'age': 4}"):
        qr.Compositional(SCHEMA, DIM, {"age": 4}, "mult")
    with pytest.raises(ValueError, match="operation must be 'mult' or 'add', got 'concat'"):
        qr.Compositional(SCHEMA, DIM, {"age": 2}, "concat")  # type: ignore[arg-type]
