"""Draws near the target, and the best of them within the budget."""

import itertools
from collections import Counter

import numpy as np
import pytest

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.evidence import Evidence, Trial
from pipeline.data.schema import Field, Schema
from pipeline.embeddings.cost import full_tables, prices, spent
from pipeline.methods import random_search
from stages import _model

SCHEMA = Schema((Field("user", 70), Field("item", 50), Field("age", 3)))
CANDIDATES = ((1, 2, 3, 4, 8), (0, 1, 2, 4, 8), (1, 2, 4, 8))
DIM = 8
PRICES = prices(random_search.build, SCHEMA, CANDIDATES, DIM)
FULL = full_tables(SCHEMA, DIM).bytes


def drawn(seed: int = 0, **options) -> list[Allocation]:
    return random_search.propose(SCHEMA, DIM, CANDIDATES, PRICES, np.random.default_rng(seed), **options)


def size(allocation: Allocation) -> int:
    return spent(random_search.build, SCHEMA, DIM, allocation).bytes


def test_as_many_allocations_as_are_asked_for_none_twice_and_the_same_for_the_same_seed() -> None:
    assert len(drawn(draws=1)) == 1
    found = drawn(target=0.5)
    assert 1 < len(found) <= 8 and len(set(found)) == len(found)
    assert found == drawn(target=0.5) != drawn(1, target=0.5)


@pytest.mark.parametrize("target", [0.2, 0.5, 0.8, 2500])
def test_they_fill_the_target_and_are_never_over_it(target: float) -> None:
    limit = target if isinstance(target, int) else int(target * FULL)
    for allocation in drawn(draws=20, target=target):
        assert 0.9 * limit <= size(allocation) <= limit


def test_without_a_target_it_is_a_quarter() -> None:
    assert all(FULL * 0.2 <= size(allocation) <= FULL // 4 for allocation in drawn())


def test_every_choice_in_the_window_is_equally_probable() -> None:
    limit = int(0.5 * FULL)
    inside = [
        choice
        for choice in itertools.product(*CANDIDATES)
        if limit * 0.98 <= size(Allocation("random_search", dict(zip(SCHEMA.names, choice, strict=True)))) <= limit
    ]
    assert len(inside) > 1
    times = Counter(tuple(drawn(seed, draws=1, target=limit)[0].dims.values()) for seed in range(40 * len(inside)))
    assert set(times) == set(inside)
    assert max(abs(count - 40) for count in times.values()) < 5 * 40**0.5


def test_where_nothing_comes_near_the_target_what_is_below_it_is_drawn() -> None:
    least, second = 4 * (70 + 8 + 3 + 8), 4 * (70 + 8 + 6 + 16)  # item dropped, the others at 1; then age at 2
    found = drawn(target=second - 1)
    assert [size(allocation) for allocation in found] == [least]


def test_a_target_below_the_cheapest_choice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no choice costs .* the least is 356 "):
        drawn(target=300)


def trial(auc: float, user: int) -> Trial:
    allocation = Allocation("random_search", {"user": user, "item": 1, "age": 1})
    return Trial(allocation, auc, size(allocation))


def test_the_best_within_the_budget_is_taken_and_without_one_the_best_of_all() -> None:
    trials = (trial(0.6, 2), trial(0.7, 4), trial(0.65, 3), trial(0.8, 8), trial(0.7, 3))
    given = {"trials": trials}
    base = (SCHEMA, DIM, CANDIDATES, PRICES, FULL)
    assert random_search.derive(Evidence(*base, **given)).dims["user"] == 8
    assert random_search.derive(Evidence(*base, **given, budget=trials[1].bytes)).dims["user"] == 3  # a tie
    assert random_search.derive(Evidence(*base, **given, budget=trials[0].bytes)).dims["user"] == 2
    with pytest.raises(ValueError, match=rf"the least is {trials[0].bytes:,}; raise the budget, or search for it"):
        random_search.derive(Evidence(*base, **given, budget=trials[0].bytes - 1))
    with pytest.raises(ValueError, match="random_search needs the trials of its proposals"):
        random_search.derive(Evidence(*base))


def test_studies_search_anew_for_every_budget() -> None:
    assert _model.method({"method": {"name": "random_search", "options": {}}}).targets
