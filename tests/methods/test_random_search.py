"""Random search: draws near the target, and the best of them within the budget."""

import itertools
from collections import Counter

import numpy as np
import pytest

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.evidence import Trial
from pipeline.data.schema import Field, Schema
from pipeline.embeddings.cost import full_tables
from pipeline.experiment.method import Method
from pipeline.methods import random_search
from tests.contracts import evidence, problem

SCHEMA = Schema((Field("user", 70), Field("item", 50), Field("age", 3)))
CANDIDATES = ((1, 2, 3, 4, 8), (0, 1, 2, 4, 8), (1, 2, 4, 8))
DIM = 8
PRICES = evidence("random_search", SCHEMA, DIM, CANDIDATES).prices
FULL = full_tables(SCHEMA, DIM).bytes


def drawn(seed: int = 0, **options) -> list[Allocation]:
    return random_search.find(problem("random_search", SCHEMA, DIM, CANDIDATES, seed=seed), **options)


def size(allocation: Allocation) -> int:
    """Bytes by the prices of the dimensions."""
    numbers = [offered.index(d) for offered, d in zip(CANDIDATES, allocation.dims.values(), strict=True)]
    return int(PRICES[np.arange(3), numbers].sum())


def test_there_are_as_many_proposals_as_draws_without_repeats_and_equal_seeds_give_equal_ones() -> None:
    assert len(drawn(draws=1)) == 1
    proposals = drawn(target=0.5)
    assert 1 < len(proposals) <= 8 and len(set(proposals)) == len(proposals)
    assert proposals == drawn(target=0.5) != drawn(1, target=0.5)


@pytest.mark.parametrize("target", [0.2, 0.5, 0.8, 2500])
def test_proposals_fill_the_target_and_never_exceed_it(target: float) -> None:
    limit = target if isinstance(target, int) else int(target * FULL)
    for allocation in drawn(draws=20, target=target):
        assert 0.9 * limit <= size(allocation) <= limit


def test_without_a_target_it_is_a_quarter_of_the_full_tables() -> None:
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


def test_if_no_choice_is_near_the_target_a_smaller_one_is_drawn() -> None:
    least, second = 4 * (70 + 8 + 3 + 8), 4 * (70 + 8 + 6 + 16)  # item dropped, the others at 1; then age at 2
    assert [size(allocation) for allocation in drawn(target=second - 1)] == [least]


def test_a_target_below_the_cheapest_choice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no choice costs .* the least is 356 "):
        drawn(target=300)


def trial(quality: float, user: int) -> Trial:
    allocation = Allocation("random_search", {"user": user, "item": 1, "age": 1})
    return Trial(allocation, quality, size(allocation))


def test_the_best_proposal_within_the_budget_is_taken_and_without_one_the_best_of_all() -> None:
    trials = (trial(0.6, 2), trial(0.7, 4), trial(0.65, 3), trial(0.8, 8), trial(0.7, 3))

    def derived(budget: int | None) -> int:
        given = evidence("random_search", SCHEMA, DIM, CANDIDATES, trials=trials, budget=budget)
        return random_search.derive(given).dims["user"]

    assert derived(None) == 8
    assert derived(trials[1].bytes) == 3  # a tie
    assert derived(trials[0].bytes) == 2
    with pytest.raises(
        ValueError, match=rf"the least is {trials[0].bytes:,}; raise the budget, or set the option target"
    ):
        derived(trials[0].bytes - 1)
    with pytest.raises(ValueError, match="random_search needs the trials of its proposals, got none"):
        random_search.derive(evidence("random_search", SCHEMA, DIM, CANDIDATES))


def test_what_it_finds_depends_on_the_bytes_that_it_searches_for() -> None:
    assert Method.named("random_search").targets and not Method.named("autodim").targets
