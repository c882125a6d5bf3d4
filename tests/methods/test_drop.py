"""The control that keeps or drops whole fields: of all choices that fit, the one of most saliency."""

import itertools

import numpy as np
import pytest

from pipeline.allocation.evidence import Evidence
from pipeline.data.schema import Field, Schema
from pipeline.embeddings.cost import full_tables, prices
from pipeline.methods import drop

SCHEMA = Schema((Field("user", 70), Field("item", 50), Field("age", 3), Field("zip", 40)))
DIM = 4
CANDIDATES = tuple(map(tuple, drop.candidates(SCHEMA, DIM)))
PRICES = prices(drop.build, SCHEMA, CANDIDATES, DIM)


def given(saliency: list[float], budget: int | None = None) -> Evidence:
    found = {"saliency": np.array(saliency)[:, None]}
    return Evidence(SCHEMA, DIM, CANDIDATES, PRICES, full_tables(SCHEMA, DIM).bytes, found=found, budget=budget)


def test_a_field_keeps_its_full_table_or_nothing() -> None:
    assert PRICES.tolist() == [[0, 70 * 16], [0, 50 * 16], [0, 3 * 16], [0, 40 * 16]]
    assert drop.derive(given([0.3, 0.2, 0.1, 0.15], (50 + 3 + 40) * 16)).dims == {
        "user": 0,
        "item": 4,
        "age": 4,
        "zip": 4,
    }


@pytest.mark.parametrize("seed", range(10))
def test_no_other_fields_that_fit_are_worth_more(seed: int) -> None:
    rng = np.random.default_rng(seed)
    saliency, budget = rng.random(4), int(rng.integers(3 * 16, 163 * 16))
    fitting = [
        kept
        for kept in itertools.product((0, 1), repeat=4)
        if sum(p for p, k in zip(PRICES[:, 1], kept, strict=True) if k) <= budget
    ]
    best = max(sum(s for s, k in zip(saliency, kept, strict=True) if k) for kept in fitting)
    dims = drop.derive(given(saliency.tolist(), budget)).dims
    assert sum(s for s, d in zip(saliency, dims.values(), strict=True) if d) == pytest.approx(best)


def test_one_field_stays_whatever_it_is_worth() -> None:
    assert sum(d > 0 for d in drop.derive(given([0.0] * 4)).dims.values()) == 1
    with pytest.raises(ValueError, match="the least is 48 bytes; raise the budget"):
        drop.derive(given([0.3, 0.2, 0.1, 0.15], 47))
