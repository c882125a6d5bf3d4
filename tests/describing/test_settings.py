"""Settings that suit the size of a table and its columns."""

import numpy as np
import pytest

from pipeline.describing.settings import SIZES, cardinality, rule_for_numbers, size_of
from pipeline.sources.source import CATEGORICAL, NUMERIC
from tests.describing.columns import column, drawn


def test_larger_tables_are_read_fewer_times_in_larger_batches() -> None:
    assert [size_of(rows).search_epochs for rows in (500, 100_000, 1_000_000, 3_000_000, 40_000_000)] == [8, 8, 4, 2, 1]
    batches = [size.batch_size for size in SIZES]
    assert batches == sorted(batches)
    for size in SIZES:
        assert max(size.dims) <= size.dim and size.batch_size >= 3


@pytest.mark.parametrize(
    ("values", "rule", "why"),
    [
        (drawn(lambda rng: rng.random()), "quantiles", "would make 1 categories"),
        (drawn(lambda rng: rng.randrange(-90, 90)), "quantiles", "negative"),
        (drawn(lambda rng: 1.6e9 + rng.random()), "quantiles", "categories"),
        (drawn(lambda rng: int(rng.paretovariate(0.5))), "log-square", "counts"),
        (drawn(lambda rng: round(rng.random() * 100, 2)), "log-square", "counts"),
        ([-1, 0, 5, 70, 90, 400], "log-square", "counts"),
    ],
)
def test_numbers_that_the_rule_for_counts_spoils_go_into_quantiles(values: list[float], rule: str, why: str) -> None:
    found, reason = rule_for_numbers([column(range(1000)), column(values, "odd")])
    assert found == rule
    assert why in reason and ("'odd'" in reason) == (rule == "quantiles")


def test_the_number_of_ids_is_that_of_frequent_values_or_of_categories() -> None:
    texts = column(["a", "a", "a", "b", "b", "c"])
    assert [cardinality(texts, CATEGORICAL, "log-square", least) for least in (1, 2, 3, 4)] == [4, 3, 2, 1]
    numbers = column([0, 1, 2, 7, 8, 8, 20])  # categories 0, 1, 2, 3, 4, 8
    assert cardinality(numbers, NUMERIC, "log-square", 2) == 7
    assert [int(np.log(value) ** 2) for value in (7, 8, 20)] == [3, 4, 8]
    assert cardinality(column(range(500)), NUMERIC, "quantiles", 2) == 21
