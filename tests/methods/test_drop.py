"""The control that keeps or drops whole fields takes the choice with the most saliency of all that fit."""

import itertools

import numpy as np
import pytest

from pipeline.allocation.evidence import Evidence
from pipeline.data.schema import Field, Schema
from pipeline.methods import drop
from tests.contracts import evidence

SCHEMA = Schema((Field("user", 70), Field("item", 50), Field("age", 3), Field("zip", 40)))


def given(saliency: list[float], budget: int | None = None) -> Evidence:
    arrays = {"saliency": np.array(saliency)[:, None]}
    return evidence("drop", SCHEMA, 4, arrays=arrays, budget=budget)


def test_a_field_keeps_its_full_table_or_nothing() -> None:
    budgeted = given([0.3, 0.2, 0.1, 0.15], (50 + 3 + 40) * 16)
    assert budgeted.prices.tolist() == [[0, 70 * 16], [0, 50 * 16], [0, 3 * 16], [0, 40 * 16]]
    assert drop.derive(budgeted).dims == {"user": 0, "item": 4, "age": 4, "zip": 4}


def test_no_other_fields_that_fit_are_worth_more() -> None:
    for seed in range(8):
        rng = np.random.default_rng(seed)
        saliency, budget = rng.random(4), int(rng.integers(3 * 16, 163 * 16))
        sizes = given(saliency.tolist()).prices[:, 1]
        fitting = [kept for kept in itertools.product((0, 1), repeat=4) if np.dot(sizes, kept) <= budget]
        best = max(float(np.dot(saliency, kept)) for kept in fitting)
        dims = drop.derive(given(saliency.tolist(), budget)).dims
        assert sum(s for s, d in zip(saliency, dims.values(), strict=True) if d) == pytest.approx(best), seed


def test_one_field_is_kept_even_if_it_is_worth_nothing() -> None:
    assert sum(d > 0 for d in drop.derive(given([0.0] * 4)).dims.values()) == 1
    with pytest.raises(ValueError, match="the least is 48 bytes; raise the budget"):
        drop.derive(given([0.3, 0.2, 0.1, 0.15], 47))
