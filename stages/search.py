"""Stage 3: the search of the method, which usually trains a supernet.

Reads the parts ``train``, ``arch`` and ``val``; writes ``artifacts/search/scores.json``,
``artifacts/trajectory.parquet`` (every recorded step) and ``artifacts/trajectory.csv`` (thinned, for DVC's plots).
"""

from __future__ import annotations

import time

from pipeline.data.encoded import Encoded
from pipeline.experiment.experiment import Experiment
from pipeline.experiment.feasible import check_feasible
from pipeline.experiment.find import find
from pipeline.experiment.found import Found
from pipeline.experiment.trajectory import long_form, thinned
from pipeline.tracking.stage import stage_tracker
from pipeline.training import ranks
from pipeline.workflow import process
from pipeline.workflow.code import content_key
from pipeline.workflow.outputs import discard, whole, write_json
from pipeline.workflow.params import Params
from pipeline.workflow.places import ENCODED, SCORES, TRAJECTORY, work


def run() -> None:
    params = Params.of_stage("search")
    with ranks.together(run, params.search.devices, "search.devices"):
        search(params)


def search(params: Params) -> None:
    """The stage, or the part in it of a process that trains with the first one and writes nothing."""
    started = time.monotonic()
    experiment = Experiment(params, Encoded.load(ENCODED))
    experiment.check()
    check_feasible(experiment, Params.load())  # also parameters that do not affect this stage
    code = experiment.code("stages/search.py")
    key = content_key(code, params.to_dict(), inputs=[ENCODED / "schema.json"])
    folder = work("ckpt", "search", key)
    if not ranks.first():
        find(experiment, folder)
        return
    with stage_tracker("search", key, experiment.data.raw_sha256) as tracker:
        tracked = tracker.run(seed=params.search.seed, params=params.to_dict())
        found = find(experiment, folder, tracked.metrics)
        with whole(SCORES.parent) as draft:
            draft.mkdir()
            write_json(draft / SCORES.name, found.to_dict())
        table = long_form(found)
        with whole(TRAJECTORY) as file:
            table.to_parquet(file, index=False)
        with whole(TRAJECTORY.with_suffix(".csv")) as file:
            thinned(table).to_csv(file, index=False)
        discard(folder)
        tracked.artifact(TRAJECTORY)
        tracked.tag("undecided", ", ".join(found.undecided) or "none")
    if found.undecided:
        print(
            f"search: warning: undecided on {', '.join(found.undecided)}: the first candidate leads the second by less "
            f"than {experiment.architecture.margin}; train longer, or raise search.architecture.lr"
        )
    print(f"search: {_summary(found, experiment)}, {time.monotonic() - started:.1f} s")


def _summary(found: Found, experiment: Experiment) -> str:
    objective, title = experiment.task.objective, experiment.task.title
    if found.trials:
        best = max(trial.quality for trial in found.trials)
        return f"{len(found.trials)} proposals trained, best val {title} {best:.4f}"
    if found.validation:
        last = found.validation[-1][objective]
        return f"{found.steps:,} of {found.planned_steps:,} steps, supernet's val {title} {last:.4f}"
    return f"method {found.method} trains nothing here"


if __name__ == "__main__":
    process.main(run, kept="the last checkpoint is kept, and the same command goes on from it")
