"""Outside the main job: search the settings of the search, with Optuna. `make sweep` runs it.

Reads ``sweep`` of params.yaml, and the parts ``train``, ``arch`` and ``val``; writes ``artifacts/sweep/``. An
interrupted sweep continues when it is started again. The environment variable PIPELINE_SWEEP_STORAGE names a database
that several machines may share.
"""

from __future__ import annotations

import time
from pathlib import Path

from pipeline.data.encoded import Encoded
from pipeline.reporting.text import number_of
from pipeline.sweeps import report
from pipeline.sweeps.storage import finished, in_use, reap
from pipeline.sweeps.sweep import Sweep
from pipeline.sweeps.workers import do_trials
from pipeline.workflow import process, workers
from pipeline.workflow.outputs import whole
from pipeline.workflow.params import Params, declared
from pipeline.workflow.places import ENCODED

OUT = Path("artifacts/sweep")


def run() -> None:
    started = time.monotonic()
    params = Params.load()
    if params.sweep.workers > 1:
        process.share_cores(params.sweep.workers)
        workers.start_server("pipeline.sweeps.workers")
    sweep = Sweep(params, declared("sweep"), Encoded.load(ENCODED))
    study = sweep.open()
    with in_use(sweep.name):
        before = len(finished(study))
        print(f"sweep: study {sweep.name}, {before} of {number_of(params.sweep.trials, 'trial')} finished", flush=True)
        reap(study)
        do_trials(sweep, study)
        rows = sweep.rows(study)
    with in_use(sweep.name), whole(OUT) as folder:
        lines = report.write(folder, sweep, rows, sweep.importances(study))
    best = report.chosen(rows)
    with sweep.tracker(sweep.name) as tracker:
        figures = {"trials": len(rows)}
        if best is not None:
            figures |= {f"val/{sweep.experiment({}).task.objective}": best["objective"], "bytes": best["bytes"]}
        tracker.parent(metrics=figures, tags={"study": sweep.name}, artifacts=sorted(OUT.rglob("*.*")))
    print("\n".join(lines))
    print(f"sweep: {number_of(len(rows) - before, 'trial')}, {time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    process.main(run, kept="finished trials and the last checkpoints are kept, and the same command goes on from them")
