"""Stage 4: scores -> the allocation, and the controls that it has to stand beside.

Writes ``artifacts/allocation.json`` and ``artifacts/controls.json``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pipeline.plug import plug
from pipeline.schema import Schema
from stages import _stage
from stages._stage import ENCODED, SCORES

if TYPE_CHECKING:
    from pipeline.allocation import Allocation
    from pipeline.evidence import Evidence


def evidence(record: Mapping[str, Any], schema: Schema, budget: Any) -> Evidence:
    """What a search found, as what a method derives from.

    Args:
        record: the contents of ``scores.json``.
        budget: as `pipeline.budget.in_bytes` takes it, or None.
    """
    import numpy as np

    from pipeline.budget import full_tables, in_bytes, prices
    from pipeline.evidence import Evidence

    if list(record["features"]) != list(schema.names):
        raise _stage.broken(SCORES, f"is of other fields than {ENCODED / 'schema.json'}")
    dim = record["dim"]
    chosen = tuple(tuple(record["features"][name]["candidates"]) for name in schema.names)
    priced = prices(plug("methods", record["method"]).build, schema, chosen, dim)
    scores = np.full(priced.shape, -np.inf)
    for f, name in enumerate(schema.names):
        values = record["features"][name]["log_probability"]
        scores[f, : len(values)] = values
    full = full_tables(schema, dim).bytes
    limit = None if budget is None else in_bytes(budget, full)
    return Evidence(schema, dim, chosen, priced, full, record["seed"], scores, limit)


def decide(method: str, given: Evidence) -> tuple[Allocation, int]:
    """The method's allocation, checked, and the bytes that it costs."""
    from pipeline.budget import bytes_per_field

    plugged = plug("methods", method)
    searched: Allocation = plugged.derive(given)
    searched.check(given.schema)
    spent = sum(bytes_per_field(plugged.build, given.schema, searched.dims, given.dim).values())
    if given.budget is not None and spent > given.budget:
        raise ValueError(f"{method} derived {spent:,} bytes, which is over the budget of {given.budget:,}")
    return searched, spent


def run() -> None:
    started = time.time()
    params = _stage.params("derive")
    schema = Schema.load(ENCODED / "schema.json")
    record = _stage.read(SCORES)
    given = evidence(record, schema, params["derive"]["budget"])
    searched, spent = decide(record["method"], given)
    controls: dict[str, dict[str, object]] = {}
    for seed in params["retrain"]["seeds"]:
        match = replace(given, scores=None, seed=seed, match=spent)
        for name in ("full", "uniform", "random"):
            controls.setdefault(name, {})[str(seed)] = plug("methods", name).derive(match).to_dict()
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
