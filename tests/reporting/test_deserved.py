"""The dimensions that coded fields deserve, and the agreement of the seeds on them."""

import numpy as np
import pytest
import torch

from pipeline.coding.choice import Plan
from pipeline.reporting.deserved import agreement, deserved, rounded

CUTS = np.array([0, 2, 10])


def plan(bits: list[list[int]]) -> Plan:
    return Plan(CUTS, np.array(bits, np.uint8), False)


def test_components_bits_rows_and_lookups_of_each_block() -> None:
    plans = [[plan([[4, 3, 0], [2, 0, 0]])], [plan([[4, 3, 1], [0, 0, 0]])]]
    weights = torch.tensor([3.0, 3.0, *[0.5] * 8])
    found = deserved(["user"], plans, [weights])
    assert found["fields"]["user"] == [
        {"rows": 2, "lookups": pytest.approx(0.6), "components": [2, 3], "bits": [7, 8]},
        {"rows": 8, "lookups": pytest.approx(0.4), "components": [1, 0], "bits": [2, 0]},
    ]


def test_a_field_that_one_seed_codes_by_rows_has_the_blocks_of_the_other() -> None:
    by_rows = Plan(CUTS[[0, -1]], np.full((1, 3), 4, np.uint8), True)
    found = deserved(["user"], [[by_rows], [plan([[4, 3, 0], [2, 0, 0]])]], [torch.ones(10)])
    assert [block["components"] for block in found["fields"]["user"]] == [[3, 2], [3, 1]]
    assert [block["bits"] for block in found["fields"]["user"]] == [[12, 7], [12, 2]]


def test_agreement_is_the_weighted_correlation_of_pairs_of_seeds() -> None:
    rng = np.random.default_rng(0)
    numbers, rows = rng.integers(1, 9, (6, 3)), rng.integers(1, 50, 6)
    blocks = [
        {"rows": int(n), "components": of_block.tolist(), "bits": [2, 2, 2]}
        for n, of_block in zip(rows, numbers, strict=True)
    ]
    repeated = np.repeat(numbers, rows, axis=0)  # every row of a block counts alike
    correlations = np.corrcoef(repeated.T)[np.triu_indices(3, 1)]
    assert agreement({"a": blocks[:2], "b": blocks[2:]}) == pytest.approx(correlations.mean())


def test_agreement_is_undefined_for_one_seed_or_the_same_number_everywhere() -> None:
    assert agreement({"a": [{"rows": 3, "components": [2], "bits": [4]}]}) is None
    assert agreement({"a": [{"rows": 3, "components": [2, 2], "bits": [4, 4]}] * 2}) is None


def test_a_mean_has_a_decimal_only_where_it_matters() -> None:
    assert [rounded(values) for values in ([2, 3], [3, 3], [10, 11], [246, 247])] == ["2.5", "3", "10", "246"]
