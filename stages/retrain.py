"""Stage 5: train a fresh model of the searched allocation and of each control, for all seeds, with equal settings.

Trains on ``train`` and ``arch``, stops early on ``val``; writes ``artifacts/models/<allocation>/seed-<seed>/`` with
``model.safetensors``, ``allocation.json`` and ``history.json``. After an interruption, finished models are not trained
again.
"""

from __future__ import annotations

import shutil
import time

from pipeline.allocation.allocation import Allocation
from pipeline.data.encoded import Encoded
from pipeline.experiment.experiment import Experiment
from pipeline.experiment.saved import ALLOCATION as ALLOCATION_NAME
from pipeline.experiment.saved import save
from pipeline.experiment.train import train
from pipeline.tracking.stage import stage_tracker
from pipeline.workflow import process
from pipeline.workflow.code import content_key
from pipeline.workflow.outputs import broken, read_json, whole
from pipeline.workflow.params import Params
from pipeline.workflow.places import ALLOCATION, CONTROLS, ENCODED, MODELS, work
from pipeline.workflow.plug import check_name, file_of


def run() -> None:
    started = time.monotonic()
    params = Params.of_stage("retrain")
    experiment = Experiment(params, Encoded.load(ENCODED))
    models = _models(experiment)
    methods = sorted({allocation.method for _, _, allocation in models})
    code = ["stages/retrain.py", file_of("tasks", params.task.name), file_of("backbones", params.backbone.name)]
    code += [file_of("methods", name) for name in methods]
    key = content_key(code, params.to_dict(), inputs=[ENCODED / "schema.json", ALLOCATION, CONTROLS])
    folder = work("ckpt", "retrain", key)
    with stage_tracker("retrain", key, experiment.data.raw_sha256) as tracker:
        for name, seed, allocation in models:
            done, checkpoint = folder / name / f"seed-{seed}", folder / name / f"seed-{seed}.ckpt"
            if done.exists():
                continue
            tracked = tracker.run(f"{name}/seed-{seed}", seed=seed, params=params.to_dict(), tags={"allocation": name})
            title = f"{name}, seed {seed}"
            trained = train(experiment, allocation, seed, checkpoint, title=title, record=tracked.metrics)
            save(done, trained, allocation)
            checkpoint.unlink(missing_ok=True)
            tracked.artifact(done / ALLOCATION_NAME, output=MODELS / name / f"seed-{seed}" / ALLOCATION_NAME)
            tracked.end()
            objective = trained.validation[experiment.task.objective]
            epochs = len(trained.history)
            print(f"retrain: {title}: val {experiment.task.title} {objective:.4f} in {epochs} epochs", flush=True)
        with whole(MODELS) as draft:
            for name, seed, _ in models:  # one by one, to leave behind any draft of a killed process
                shutil.copytree(folder / name / f"seed-{seed}", draft / name / f"seed-{seed}")
        shutil.rmtree(folder)
    print(f"retrain: {len(models)} models, {time.monotonic() - started:.1f} s")


def _models(experiment: Experiment) -> list[tuple[str, int, Allocation]]:
    """Name, seed and allocation of every model to train."""
    seeds = experiment.params.retrain.seeds
    searched = Allocation.load(ALLOCATION, experiment.schema)
    check_name("methods", searched.method, f"{ALLOCATION}: method")
    models = [("searched", seed, searched) for seed in seeds]
    controls = read_json(CONTROLS)
    if not isinstance(controls, dict):
        raise broken(CONTROLS, "is not a mapping of controls")
    for name, by_seed in controls.items():
        for seed in seeds:
            if str(seed) not in by_seed:
                raise broken(CONTROLS, f"{name} has no seed {seed} of retrain.seeds in params.yaml")
            allocation = Allocation.from_dict(by_seed[str(seed)])
            allocation.check(experiment.schema)
            check_name("methods", allocation.method, f"{CONTROLS}: method")
            models.append((name, seed, allocation))
    return models


if __name__ == "__main__":
    process.main(run)
