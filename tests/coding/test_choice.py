"""The choice of bits: exact, within its limit, and with all that is stored paid for."""

import contextlib
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.allocation.budget import TooFewBytes
from pipeline.coding import arrays
from pipeline.coding.choice import CODE, LEVEL, PADDING, Choices, Plan, choose
from pipeline.coding.prediction import Prediction, predict
from pipeline.coding.quantiser import BITS

DIM = 4
SMALL = (53, 43, 38, 27, 28, 16, 18)  # rows of fields for which neither way is much better


def prediction(rows: int, seed: int) -> Prediction:
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(rows, DIM, generator=generator) * torch.logspace(0, -1, DIM)
    weights = 1 / (1 + torch.arange(rows).float())
    root = torch.randn(DIM, DIM, generator=generator).double()
    return predict(table, weights / weights.sum(), root @ root.T)


def loss(one: Prediction, plan: Plan) -> float:
    numbers = np.searchsorted(BITS, plan.bits)
    if plan.by_rows:
        return float(one.rows[numbers[0, 0]])
    blocks, components = np.indices(numbers.shape)
    return float(one.components[blocks, components, numbers].sum())


def test_no_plan_within_the_limit_is_better() -> None:
    """All combinations of one block of two components, some hundreds of prices, by brute force."""
    one = prediction(40, 0)
    small = Prediction(np.array([0, 40]), one.components.sum(0)[None, :2], np.full(len(BITS), np.inf), DIM)
    small.rows[-1] = 1e9  # possible, and far too bad
    plans = [Plan(small.cuts, np.array([pair], np.uint8), False) for pair in itertools.product(BITS, repeat=2)]
    least = min(plan.size(DIM) for plan in plans)
    for limit in range(-(-(least + PADDING) // 8), 200):
        fitting = [loss(small, plan) for plan in plans if plan.size(DIM) <= 8 * limit - PADDING]
        (found,) = choose([small], limit)
        assert found.size(DIM) <= 8 * limit - PADDING
        assert loss(small, found) == pytest.approx(min(fitting))


@pytest.mark.parametrize("limit", range(340, 520, 20))
def test_no_other_ways_to_code_the_fields_are_better(limit: int) -> None:
    """Every combination of ways, each the only one that is offered. At 400 bytes, the ways at the price of a bit lose
    0.8 % more than the best ones."""
    fields = [prediction(rows, seed) for seed, rows in enumerate(SMALL)]
    plans, gap = Choices(fields).within(limit)
    assert gap == 0 and sum(plan.size(DIM) for plan in plans) <= 8 * limit - PADDING
    found = sum(one.loss(plan.bits, plan.by_rows) for one, plan in zip(fields, plans, strict=True))
    losses = []
    for ways in itertools.product((False, True), repeat=len(fields)):
        offered = [
            replace(one, components=np.full_like(one.components, 1e9))
            if by_rows
            else replace(one, rows=np.full(8, 1e9))
            for one, by_rows in zip(fields, ways, strict=True)
        ]
        with contextlib.suppress(TooFewBytes):
            best = choose(offered, limit)
            losses.append(sum(one.loss(plan.bits, plan.by_rows) for one, plan in zip(offered, best, strict=True)))
    assert found == pytest.approx(min(losses), rel=1e-12)


def test_a_plan_pays_for_codes_quantisers_means_and_every_decoder_row_once() -> None:
    plan = Plan(np.array([0, 10, 30]), np.array([[2, 1, 0, 0], [1, 0, 0, 0]], np.uint8), False)
    codes, described = 10 * 3 + 20 * 1, 8 + 32 + CODE * 8
    assert plan.size(DIM) == codes + LEVEL * (DIM + 2 * DIM + 2 * 3) + described
    assert plan.used.tolist() == [True, True, False, False]
    rows = Plan(np.array([0, 30]), np.full((1, DIM), 3, np.uint8), True)
    assert rows.size(DIM) == 30 * (3 * DIM + LEVEL) + 8 + CODE


@pytest.mark.parametrize("limit", [500, 1000, 100_000])
def test_fields_that_lose_nothing_are_coded_within_any_limit(limit: int) -> None:
    """Sums of their prices may round to less than no loss."""
    fields = [prediction(40 + number, 0) for number in range(5)]
    nothing = [replace(one, components=0 * one.components, rows=np.zeros(len(BITS))) for one in fields]
    plans, gap = Choices(nothing).within(limit)
    assert len(plans) == 5 and gap == 0


def test_more_bytes_never_lose_more_and_the_least_is_named() -> None:
    fields = [prediction(rows, seed) for seed, rows in enumerate((3, 30, 400))]
    with pytest.raises(TooFewBytes, match=r"the least is (\d+); raise the budget") as refused:
        choose(fields, 20)
    least = int(str(refused.value).split("least is ")[1].split(";")[0])
    losses = []
    for limit in (least, 2 * least, 4 * least, 8 * least, 16 * least):
        plans = choose(fields, limit)
        assert sum(plan.size(DIM) for plan in plans) <= 8 * limit - PADDING
        losses.append(sum(loss(one, plan) for one, plan in zip(fields, plans, strict=True)))
    assert losses == sorted(losses, reverse=True)
    with pytest.raises(TooFewBytes):
        choose(fields, least - 1)


def test_few_values_are_coded_by_rows_and_many_by_components() -> None:
    plans = choose([prediction(2, 0), prediction(4000, 1)], 2500)
    assert [plan.by_rows for plan in plans] == [True, False]


def test_predictions_and_plans_pass_through_arrays() -> None:
    numbers = [2, 30, 400]
    fields = [prediction(rows, seed) for seed, rows in enumerate(numbers)]
    again = arrays.predictions(arrays.of_predictions(fields), numbers)
    for one, other in zip(fields, again, strict=True):
        assert np.array_equal(one.cuts, other.cuts) and np.array_equal(one.components, other.components)
        assert np.array_equal(one.rows, other.rows)
    plans = choose(fields, 800)
    stored = arrays.of_plans(plans)
    assert len(stored["bits"]) == arrays.number_of_bits(stored["blocks"].tolist(), numbers, DIM)
    for plan, copy in zip(plans, arrays.plans(stored, numbers, DIM), strict=True):
        assert np.array_equal(plan.cuts, copy.cuts) and np.array_equal(plan.bits, copy.bits)
        assert plan.by_rows == copy.by_rows
