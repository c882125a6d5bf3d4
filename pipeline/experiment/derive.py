"""Derive an allocation from the findings of a search, and the controls to compare it with."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.budget import in_bytes
from pipeline.allocation.evidence import Evidence
from pipeline.data.schema import Schema
from pipeline.embeddings.cost import full_tables, prices, spent
from pipeline.experiment.found import Found
from pipeline.experiment.method import Method, build


def evidence(found: Found, schema: Schema, budget: float | None) -> Evidence:
    """The findings of a method as the input of its derivation.

    Args:
        found: the findings.
        schema: of the encoded data.
        budget: as written in params.yaml; see `pipeline.allocation.budget.in_bytes`.
    """
    priced = prices(Method.named(found.method).plain, schema, found.candidates, found.dim)
    scores = None
    if found.scores is not None:
        scores = np.full(priced.shape, -np.inf)
        for row, field_scores in zip(scores, found.scores, strict=True):
            row[: len(field_scores)] = field_scores
    full = full_tables(schema, found.dim).bytes
    return Evidence(
        method=found.method,
        schema=schema,
        dim=found.dim,
        candidates=found.candidates,
        prices=priced,
        full_bytes=full,
        seed=found.seed,
        scores=scores,
        arrays=found.arrays,
        trials=found.trials,
        budget=None if budget is None else in_bytes(budget, full),
    )


def derive(method: Method, given: Evidence) -> tuple[Allocation, int]:
    """The method's allocation and its bytes; the allocation is checked.

    Raises:
        ValueError: if the findings are of another method, if an option of the method is wrong, or if the allocation
            exceeds the budget.
    """
    if given.method != method.name:
        raise ValueError(f"the search used method {given.method}, but the method is now {method.name}; search again")
    method.check(given.dim)
    allocation = method.derive(given)
    allocation.check(given.schema)
    size = spent(build, given.schema, given.dim, allocation).bytes
    if given.budget is not None and size > given.budget:
        raise ValueError(f"{method.name} derived an allocation of {size:,} bytes; the budget is {given.budget:,}")
    return allocation, size


def control(name: str, given: Evidence, seed: int, match: int) -> Allocation:
    """The control with which an allocation of ``match`` bytes is compared.

    Args:
        name: of the control's method.
        given: the evidence of that allocation; the control does not see its scores, arrays and trials.
        seed: of the control.
        match: bytes to match.

    Raises:
        ValueError: if there is no control of that size.
    """
    method = Method.named(name)
    priced = prices(method.plain, given.schema, given.candidates, given.dim)
    without_findings = replace(
        given, method=name, prices=priced, scores=None, arrays={}, trials=(), seed=seed, budget=None, match=match
    )
    return method.derive(without_findings)
