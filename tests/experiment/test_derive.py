"""From what was found to an allocation that keeps its budget, and to controls of its size."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.allocation.allocation import Allocation
from pipeline.data.schema import Field, Schema
from pipeline.embeddings.cost import full_tables, spent
from pipeline.experiment.derive import control, derive, evidence
from pipeline.experiment.found import Found
from pipeline.experiment.method import Method, build

SCHEMA = Schema((Field("user", 70), Field("item", 50)))
FULL = full_tables(SCHEMA, 8).bytes
FOUND = Found(
    method="autodim",
    seed=5,
    dim=8,
    names=SCHEMA.names,
    candidates=((2, 4, 8), (1, 8)),
    scores=((-3.0, -1.0, -0.5), (-2.0, -0.1)),
)


def test_evidence_is_what_was_found_with_prices_and_the_budget_in_bytes() -> None:
    given = evidence(FOUND, SCHEMA, 0.5)
    assert given.scores is not None
    assert given.scores.tolist() == [[-3.0, -1.0, -0.5], [-2.0, -0.1, -np.inf]]
    assert (given.budget, given.full_bytes, given.seed, given.method) == (FULL // 2, FULL, 5, "autodim")
    assert given.prices[:, 0].tolist() == [4 * (70 * 2 + 2 * 8), 4 * (50 + 8)]
    assert evidence(FOUND, SCHEMA, None).budget is None and evidence(FOUND, SCHEMA, 999).budget == 999
    assert evidence(replace(FOUND, scores=None), SCHEMA, None).scores is None


def test_an_allocation_comes_with_its_bytes_and_keeps_the_budget() -> None:
    allocation, size = derive(Method.named("autodim"), evidence(FOUND, SCHEMA, None))
    assert allocation.dims == {"user": 8, "item": 8} and size == FULL
    for budget in (0.75, 0.5, 0.3):
        allocation, size = derive(Method.named("autodim"), evidence(FOUND, SCHEMA, budget))
        assert size == spent(build, SCHEMA, 8, allocation).bytes <= budget * FULL


def test_what_another_method_found_is_refused() -> None:
    with pytest.raises(ValueError, match="the search used method autodim, but the method is now pep; search again"):
        derive(Method.named("pep"), evidence(FOUND, SCHEMA, None))


def test_a_derivation_over_its_budget_or_of_other_fields_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    method = Method.named("autodim")
    for dims, why in (
        ({"user": 8, "item": 8}, f"autodim derived an allocation of {FULL:,} bytes; the budget is {FULL // 2:,}"),
        ({"user": 8}, "no dim is given for .'item'."),
    ):
        monkeypatch.setattr(method.module, "derive", lambda evidence, dims=dims: Allocation("autodim", dims))
        with pytest.raises(ValueError, match=why):
            derive(method, evidence(FOUND, SCHEMA, 0.5))


@pytest.mark.parametrize("name", ["uniform", "random"])
def test_a_control_has_the_bytes_to_match_and_knows_nothing_of_the_search(name: str) -> None:
    schema = Schema(tuple(Field(f"field_{i}", 30 + 17 * i) for i in range(8)))
    many = replace(FOUND, names=schema.names, candidates=((1, 2, 4, 8),) * 8, scores=((0.0, -1.0, -1.0, -1.0),) * 8)
    given = evidence(many, schema, 10_000)
    match = full_tables(schema, 8).bytes // 2  # more than the budget, which binds no control
    drawn = [control(name, given, seed, match) for seed in (0, 1, 1)]
    assert drawn[1] == drawn[2] and (drawn[0] != drawn[1]) == (name == "random")
    for allocation in drawn:
        assert allocation.method == name
        size = spent(build, schema, 8, allocation).bytes
        assert abs(size / match - 1) <= (0.02 if name == "random" else 0.3)
    worse = replace(many, scores=((-1.0, -1.0, -1.0, 0.0),) * 8)
    assert control(name, evidence(worse, schema, None), 1, match) == drawn[1]
