"""Coarser choices of bits: each is the best of its kind, and each refinement costs no predicted loss."""

import itertools

import numpy as np
import pytest

from benchmarks.coarser import choose_by
from pipeline.allocation.budget import TooFewBytes
from pipeline.coding.choice import Plan
from pipeline.coding.prediction import Prediction
from pipeline.coding.quantiser import BITS

CUTS = [np.array([0, 3, 20]), np.array([0, 2, 6])]
DIM = 3


def prediction(cuts: np.ndarray, seed: int) -> Prediction:
    rng = np.random.default_rng(seed)
    falls = 4.0 ** -np.array(BITS)
    components = rng.exponential(size=(2, DIM, 1)) * np.diff(cuts)[:, None, None] * falls
    rows = np.where(np.array(BITS) > 1, components[:, :, 0].sum() * falls * 1.5, np.inf)
    return Prediction(cuts, components, rows, DIM)


FIELDS = [prediction(cuts, seed) for seed, cuts in enumerate(CUTS)]


def size(plans: list[Plan]) -> int:
    return sum(plan.size(DIM) for plan in plans)


def loss(plans: list[Plan]) -> float:
    return sum(field.loss(plan.bits, plan.by_rows) for field, plan in zip(FIELDS, plans, strict=True))


def pairs() -> list[tuple[int, int]]:
    return [(0, 0), *itertools.product(range(1, DIM + 1), BITS[1:])]


def of_pairs(field: Prediction, of_blocks: tuple[tuple[int, int], ...]) -> Plan:
    bits = [[b] * d + [0] * (DIM - d) for d, b in of_blocks]
    return Plan(field.cuts, np.array(bits, np.uint8), False)


def by_rows(field: Prediction) -> list[Plan]:
    return [Plan(field.cuts[[0, -1]], np.full((1, DIM), b, np.uint8), True) for b in BITS[2:]]


@pytest.mark.parametrize("unit", ["block", "field"])
@pytest.mark.parametrize("limit", [45, 60, 90])
def test_the_choice_is_the_best_of_its_kind(unit: str, limit: int) -> None:
    ways = []
    for field in FIELDS:
        repeated = itertools.product(pairs(), repeat=2) if unit == "block" else [(pair, pair) for pair in pairs()]
        plans = [*(of_pairs(field, pair) for pair in repeated), *by_rows(field)]
        ways.append([(plan.size(DIM), field.loss(plan.bits, plan.by_rows)) for plan in plans])
    sizes, losses = (np.add.outer(*(np.array([way[i] for way in of_field]) for of_field in ways)) for i in (0, 1))
    best = losses[sizes <= 8 * (limit - 8)].min()
    chosen = choose_by(FIELDS, limit, unit)
    assert size(chosen) <= 8 * (limit - 8)
    assert loss(chosen) == pytest.approx(best, abs=1e-9)


def test_all_fields_have_the_same_pair_or_its_bits_by_rows() -> None:
    chosen = choose_by(FIELDS, 90, "all")
    pairs_of = {(int(plan.used.sum()), int(plan.bits.max())) for plan in chosen if not plan.by_rows}
    assert len(pairs_of) <= 1 and len({int(plan.bits.max()) for plan in chosen}) == 1


@pytest.mark.parametrize("limit", [60, 90, 150])
def test_a_finer_unit_never_has_a_larger_loss(limit: int) -> None:
    losses = [loss(choose_by(FIELDS, limit, unit)) for unit in ("component", "block", "field", "all")]
    assert losses[1] <= losses[2] <= losses[3]
    assert losses[0] <= losses[1] * (1 + 1e-9)
    assert losses[0] <= loss(choose_by(FIELDS, limit, "random")) * (1 + 1e-9)


def test_a_limit_that_is_too_small_names_the_least() -> None:
    for unit in ("block", "field", "all"):
        with pytest.raises(TooFewBytes, match="the least is") as error:
            choose_by(FIELDS, 9, unit)
        least = int(str(error.value).split("the least is ")[1].split(";")[0])
        assert size(choose_by(FIELDS, least, unit)) <= 8 * (least - 8)
        with pytest.raises(TooFewBytes):
            choose_by(FIELDS, least - 1, unit)
