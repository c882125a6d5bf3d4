"""Stage 4: derive the allocation from the findings of the search, and the controls to compare it with.

Reads ``artifacts/search/scores.json``; writes ``artifacts/allocation.json`` and ``artifacts/controls.json``.
"""

from __future__ import annotations

import sys
import time

from pipeline.data.encoded import Encoded
from pipeline.experiment.derive import control, derive, evidence
from pipeline.experiment.experiment import CONTROLS, Experiment
from pipeline.experiment.found import Found
from pipeline.tracking.stage import stage_tracker
from pipeline.workflow import process
from pipeline.workflow.code import content_key
from pipeline.workflow.outputs import write_json
from pipeline.workflow.params import Params
from pipeline.workflow.places import ALLOCATION, ENCODED, SCORES
from pipeline.workflow.places import CONTROLS as CONTROLS_FILE
from pipeline.workflow.plug import file_of


def run() -> None:
    started = time.time()
    params = Params.of_stage("derive")
    experiment = Experiment(params, Encoded.load(ENCODED))
    data = experiment.data
    found = Found.load(SCORES, data.schema, all_fields=data.interactions is None)  # of interactions, a backbone's
    given = evidence(found, data.schema.subset(found.names), params.derive.budget)
    allocation, spent = derive(experiment.method, given)
    controls: dict[str, dict[str, object]] = {}
    for name in CONTROLS:
        try:
            drawn = {str(seed): control(name, given, seed, spent) for seed in params.retrain.seeds}
            controls[name] = {seed: of_seed.to_dict() for seed, of_seed in drawn.items()}
        except ValueError as error:
            print(f"derive: warning: no {name} control of {spent:,} bytes: {error}", file=sys.stderr)
    allocation.save(ALLOCATION)
    write_json(CONTROLS_FILE, controls)
    code = ["stages/derive.py", *(file_of("methods", name) for name in (params.method.name, *CONTROLS))]
    key = content_key(code, params.to_dict(), inputs=[ENCODED / "schema.json", SCORES])
    with stage_tracker("derive", key, experiment.data.raw_sha256) as tracker:
        tracked = tracker.run(seed=found.seed, params=params.to_dict(), started=started)
        figures = {"bytes": spent, "of_full": spent / given.full_bytes, "full_bytes": given.full_bytes}
        tracked.metrics(0, figures if given.budget is None else {**figures, "budget": given.budget})
        tracked.metrics(0, {f"dim/{name}": d for name, d in allocation.dims.items()})
        tracked.artifact(ALLOCATION)
        tracked.artifact(CONTROLS_FILE)
    print(f"derive: {spent:,} bytes, {spent / given.full_bytes:.1%} of the full tables' {given.full_bytes:,}")
    print("        " + ", ".join(f"{name} {d}" for name, d in allocation.dims.items()))


if __name__ == "__main__":
    process.main(run)
