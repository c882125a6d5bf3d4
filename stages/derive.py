"""Stage 4: scores -> the allocation, and the controls that it has to stand beside.

Writes ``artifacts/allocation.json`` and ``artifacts/controls.json``.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pipeline.data.schema import Schema
from pipeline.workflow.plug import plug
from stages import _model, _stage
from stages._stage import ENCODED, SCORES

if TYPE_CHECKING:
    from pipeline.allocation.allocation import Allocation
    from pipeline.allocation.evidence import Evidence


def evidence(record: Mapping[str, Any], schema: Schema, budget: Any) -> Evidence:
    """What a search found, as what a method derives from.

    Args:
        record: the contents of ``scores.json``.
        budget: as `pipeline.budget.in_bytes` takes it, or None.
    """
    import numpy as np

    from pipeline.allocation.allocation import Allocation
    from pipeline.allocation.arrays import decoded
    from pipeline.allocation.budget import in_bytes
    from pipeline.allocation.evidence import Evidence, Trial
    from pipeline.embeddings.cost import full_tables, prices

    if list(record["features"]) != list(schema.names):
        raise _stage.broken(SCORES, f"is of other fields than {ENCODED / 'schema.json'}")
    dim = record["dim"]
    chosen = tuple(tuple(record["features"][name]["candidates"]) for name in schema.names)
    priced = prices(plug("methods", record["method"]).build, schema, chosen, dim)
    scores = None
    if all("log_probability" in feature for feature in record["features"].values()):
        scores = np.full(priced.shape, -np.inf)
        for f, feature in enumerate(record["features"].values()):
            scores[f, : len(feature["log_probability"])] = feature["log_probability"]
    full = full_tables(schema, dim).bytes
    limit = None if budget is None else in_bytes(budget, full)
    trials = tuple(
        Trial(Allocation.from_dict(trial["allocation"]), trial["auc"], trial["bytes"])
        for trial in record.get("trials", [])
    )
    return Evidence(
        schema, dim, chosen, priced, full, record["seed"], scores, decoded(record.get("found", {})), trials, limit
    )


def decide(params: Mapping[str, Any], given: Evidence) -> tuple[Allocation, int]:
    """The allocation of ``method`` in the parameters, checked, and the bytes that it costs."""
    from pipeline.embeddings.cost import spent

    method = _model.method(params)
    name = params["method"]["name"]
    searched: Allocation = method.module.derive(given, **method.derive_options)
    searched.check(given.schema)
    size = spent(plug("methods", searched.method).build, given.schema, given.dim, searched).bytes
    if given.budget is not None and size > given.budget:
        raise ValueError(f"{name} derived {size:,} bytes, which is over the budget of {given.budget:,}")
    return searched, size


def control(name: str, given: Evidence, seed: int, match: int) -> Allocation:
    """What an allocation of ``match`` bytes is to be compared with.

    Raises:
        ValueError: if there is no control of that size.
    """
    from pipeline.embeddings.cost import prices

    chosen = plug("methods", name)
    priced = prices(chosen.build, given.schema, given.candidates, given.dim)
    alone = replace(given, prices=priced, scores=None, found={}, trials=(), seed=seed, budget=None, match=match)
    derived: Allocation = chosen.derive(alone)
    return derived


def run() -> None:
    started = time.time()
    params = _stage.params("derive")
    schema = Schema.load(ENCODED / "schema.json")
    record = _stage.read(SCORES)
    given = evidence(record, schema, params["derive"]["budget"])
    searched, spent = decide(params, given)
    controls: dict[str, dict[str, object]] = {}
    for name in ("full", "uniform", "random"):
        try:
            drawn = {str(seed): control(name, given, seed, spent) for seed in params["retrain"]["seeds"]}
            controls[name] = {seed: allocation.to_dict() for seed, allocation in drawn.items()}
        except ValueError as error:
            print(f"derive: warning: no {name} control of {spent:,} bytes: {error}", file=sys.stderr)
    with _stage.whole("artifacts/allocation.json") as file:
        searched.save(file)
    with _stage.whole("artifacts/controls.json") as file:
        file.write_text(json.dumps(controls, indent=1) + "\n")
    key = _stage.fingerprint("derive", [ENCODED / "schema.json", SCORES])
    with _stage.tracker("derive", key, later=True) as tracker:
        tracked = tracker.run(seed=record["seed"], params=params, started=started)
        figures = {"bytes": spent, "of_full": spent / given.full_bytes, "full_bytes": given.full_bytes}
        tracked.metrics(0, figures if given.budget is None else {**figures, "budget": given.budget})
        tracked.metrics(0, {f"dim/{name}": d for name, d in searched.dims.items()})
        tracked.artifact("artifacts/allocation.json")
        tracked.artifact("artifacts/controls.json")
    print(f"derive: {spent:,} bytes, {spent / given.full_bytes:.1%} of the full tables' {given.full_bytes:,}")
    print("        " + ", ".join(f"{name} {d}" for name, d in searched.dims.items()))


if __name__ == "__main__":
    _stage.main(run)
