"""Stage 4: scores -> the allocation, and the controls that it has to stand beside.

Writes ``artifacts/allocation.json`` and ``artifacts/controls.json``.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace

from pipeline.plug import plug
from pipeline.schema import Schema
from stages import _stage
from stages._stage import ENCODED, SCORES


def run() -> None:
    started = time.time()
    import numpy as np

    from pipeline.budget import bytes_per_field, full_tables, in_bytes, prices
    from pipeline.evidence import Evidence

    params = _stage.params("derive")
    schema = Schema.load(ENCODED / "schema.json")
    record = _stage.read(SCORES)
    if list(record["features"]) != list(schema.names):
        raise _stage.broken(SCORES, f"is of other fields than {ENCODED / 'schema.json'}")
    method, dim = plug("methods", record["method"]), record["dim"]
    chosen = tuple(tuple(record["features"][name]["candidates"]) for name in schema.names)
    priced = prices(method.build, schema, chosen, dim)
    scores = np.full(priced.shape, -np.inf)
    for f, name in enumerate(schema.names):
        values = record["features"][name]["log_probability"]
        scores[f, : len(values)] = values
    full = full_tables(schema, dim).bytes
    budget = None if params["derive"]["budget"] is None else in_bytes(params["derive"]["budget"], full)
    given = Evidence(schema, dim, chosen, priced, full, record["seed"], scores, budget)

    searched = method.derive(given)
    searched.check(schema)
    spent = sum(bytes_per_field(method.build, schema, searched.dims, dim).values())
    if budget is not None and spent > budget:
        raise ValueError(f"{record['method']} derived {spent:,} bytes, which is over the budget of {budget:,}")
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
        figures = {"bytes": spent, "of_full": spent / full, "full_bytes": full}
        tracked.metrics(0, figures if budget is None else {**figures, "budget": budget})
        tracked.metrics(0, {f"dim/{name}": d for name, d in searched.dims.items()})
        tracked.artifact("artifacts/allocation.json")
        tracked.artifact("artifacts/controls.json")
    print(f"derive: {spent:,} bytes, {spent / full:.1%} of the full tables' {full:,}")
    print("        " + ", ".join(f"{name} {d}" for name, d in searched.dims.items()))


if __name__ == "__main__":
    _stage.main(run)
