"""Stage 5: train a fresh model of the searched allocation and of each control, for all seeds, with equal settings.

Trains on ``train`` and ``arch``, stops early on ``val``; writes ``artifacts/models/<allocation>/seed-<seed>/`` with
``model.safetensors``, ``allocation.json``, ``history.json`` and ``model.json``. ``artifacts/models/encoding/`` has what
turns raw values into the ids of all these models. After an interruption, finished models are not trained again.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.allocation.allocation import Allocation
from pipeline.data.encoded import Encoded
from pipeline.experiment.experiment import Experiment
from pipeline.experiment.feasible import check_batch_size
from pipeline.experiment.saved import ENCODING, copy_encoding, save
from pipeline.tracking.stage import stage_tracker
from pipeline.tracking.tracker import Run, Tracker
from pipeline.training import ranks
from pipeline.workflow import process
from pipeline.workflow.code import content_key
from pipeline.workflow.outputs import broken, discard, read_json, whole
from pipeline.workflow.params import Params
from pipeline.workflow.places import ALLOCATION, CONTROLS, ENCODED, MODELS, work
from pipeline.workflow.plug import check_name, file_of
from pipeline.workflow.progress import progress
from pipeline.workflow.workers import Send, run_jobs, start_server

if TYPE_CHECKING:
    from pipeline.training.weights import Record


@dataclass(frozen=True)
class Job:
    """One model to train; its files are ``<path>/`` and ``<path>.ckpt``."""

    params: Params
    name: str
    seed: int
    allocation: Allocation
    path: Path

    @property
    def title(self) -> str:
        return f"{self.name}, seed {self.seed}"

    @property
    def run(self) -> str:
        """Name of its run."""
        return f"{self.name}/{self.path.name}"


def run() -> None:
    params = Params.of_stage("retrain")
    with ranks.together(run, params.retrain.devices, "retrain.devices"):
        retrain(params)


def retrain(params: Params) -> None:
    """The stage, or the part in it of a process that trains with the first one and writes nothing."""
    started = time.monotonic()
    workers = params.retrain.workers if ranks.number() == 1 else 1
    if workers > 1:
        process.share_cores(workers)
        start_server("pipeline.experiment.train")
    experiment = Experiment(params, Encoded.load(ENCODED))
    check_batch_size(experiment, "retrain", params.retrain, "train", "arch")
    models = _models(experiment)
    methods = sorted({allocation.method for _, _, allocation in models})
    code = ["stages/retrain.py", file_of("tasks", params.task.name), file_of("backbones", params.backbone.name)]
    code += [file_of("methods", name) for name in methods]
    key = content_key(code, params.to_dict(), inputs=[ENCODED / "schema.json", ALLOCATION, CONTROLS])
    folder = work("ckpt", "retrain", key)
    jobs = [Job(params, name, seed, dims, folder / name / f"seed-{seed}") for name, seed, dims in models]
    todo = [job for job in jobs if not job.path.exists()]
    if not ranks.first():
        for job in todo:
            train_job(job, None, None)
        return
    with stage_tracker("retrain", key, experiment.data.raw_sha256) as tracker:
        for job in jobs:  # that were killed between their last file and the end of their run
            if job not in todo and not tracker.has_finished(job.run):
                _end(job, _tracked(tracker, job))
        if workers > 1:
            _train_in_workers(todo, experiment, tracker)
        else:
            for job in todo:
                tracked = _tracked(tracker, job)
                _done(job, tracked, train_job(job, job.title, tracked.metrics))
        with whole(MODELS) as draft:
            for job in jobs:  # one by one, to leave behind any draft of a killed process
                shutil.copytree(job.path, draft / job.name / job.path.name)
            copy_encoding(ENCODED, draft / ENCODING)
        discard(folder)
    print(f"retrain: {len(models)} models, {time.monotonic() - started:.1f} s")


def train_job(job: Job, title: str | None, record: Record | None) -> str:
    """Train and save a model; the line that says how good it is."""
    # They import Lightning; only the process that trains waits for that.
    from pipeline.experiment.train import train
    from pipeline.training.weights import Diverged, nowhere

    experiment, checkpoint = Experiment(job.params, Encoded.load(ENCODED)), job.path.with_suffix(".ckpt")
    try:
        trained = train(experiment, job.allocation, job.seed, checkpoint, title=title, record=record or nowhere)
    except Diverged as error:
        raise ValueError(f"{job.title}: {error}") from error
    if ranks.first():
        save(job.path, experiment, trained.model, job.allocation, trained.history)
        for file in (checkpoint, *checkpoint.parent.glob(f"{checkpoint.name}.*-*")):  # with the parts of divided tables
            file.unlink(missing_ok=True)
    task = experiment.task
    epochs = len(trained.history)
    return f"retrain: {job.title}: val {task.title} {trained.validation[task.objective]:.4f} in {epochs} epochs"


def work_off(job: Job, send: Send) -> None:
    """The work of a worker: send (step, names, values) of every record, and at last the line of `train_job`."""

    def record(step: int, names: tuple[str, ...], values: Sequence[float]) -> None:
        send((step, names, values))

    send(train_job(job, None, record))


def _train_in_workers(todo: list[Job], experiment: Experiment, tracker: Tracker) -> None:
    """Train models at the same time. The tracker's journal belongs to this process, so workers send their records."""
    settings = experiment.params.retrain
    epochs = settings.epochs + (settings.finetune.epochs if settings.finetune else 0)
    steps = epochs * len(experiment.task.batches(experiment.training_rows(), settings.batch_size, 0))
    runs: dict[int, Run] = {}
    done = [0] * len(todo)  # steps of each model
    remedy = "there may be too little memory: lower retrain.workers in params.yaml; what is trained is kept"
    with progress(total=len(todo) * steps, desc=f"{len(todo)} models", unit=" steps", mininterval=1) as bar:
        for number, sent in run_jobs(work_off, todo, settings.workers, remedy):
            if number not in runs:
                runs[number] = _tracked(tracker, todo[number])
            if isinstance(sent, str):
                with bar.external_write_mode():
                    _done(todo[number], runs[number], sent)
                now = steps  # also after an early stop
            else:
                now = sent[0]
                runs[number].metrics(*sent)
            bar.update(now - done[number])
            done[number] = now


def _tracked(tracker: Tracker, job: Job) -> Run:
    params = job.params.to_dict()
    return tracker.run(job.run, seed=job.seed, params=params, tags={"allocation": job.name})


def _done(job: Job, tracked: Run, line: str) -> None:
    """Record the end of a training, and print ``line``."""
    _end(job, tracked)
    print(line, flush=True)


def _end(job: Job, tracked: Run) -> None:
    tracked.model(job.path, MODELS / job.name / job.path.name)
    tracked.end()


def _models(experiment: Experiment) -> list[tuple[str, int, Allocation]]:
    """Name, seed and allocation of every model to train."""
    seeds = experiment.params.retrain.seeds
    searched = Allocation.load(ALLOCATION, experiment.schema)
    check_name("methods", searched.method, f"{ALLOCATION}: method")
    models = [("searched", seed, searched) for seed in seeds]
    controls = read_json(CONTROLS)
    if not (isinstance(controls, dict) and all(isinstance(by_seed, dict) for by_seed in controls.values())):
        raise broken(CONTROLS, "is not a mapping of controls to seeds and allocations")
    for name, by_seed in controls.items():
        for seed in seeds:
            if str(seed) not in by_seed:
                raise broken(CONTROLS, f"{name} has no seed {seed} of retrain.seeds in params.yaml")
            try:
                allocation = Allocation.from_dict(by_seed[str(seed)], experiment.schema)
            except (TypeError, ValueError) as error:
                raise broken(CONTROLS, f"{name}, seed {seed}: {error}") from error
            check_name("methods", allocation.method, f"{CONTROLS}: method")
            models.append((name, seed, allocation))
    return models


if __name__ == "__main__":
    process.main(run, kept="finished models and the last checkpoints are kept, and the same command goes on from them")
