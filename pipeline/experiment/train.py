"""Train the model of one allocation; retrainings, proposals, cells of a study and trials of a sweep all use this."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipeline.allocation.allocation import Allocation
from pipeline.data.batches import Batches
from pipeline.data.split import Split
from pipeline.embeddings.sharded import ShardedTables
from pipeline.experiment.experiment import Experiment
from pipeline.experiment.finetune import finetune
from pipeline.experiment.once import Once
from pipeline.experiment.sharded import sharded
from pipeline.models.retriever import AnyModel
from pipeline.training.calibration import calibrated
from pipeline.training.loop import fit
from pipeline.training.sharded import LitSharded
from pipeline.training.weights import LitWeights, Record, nowhere
from pipeline.workflow.params import Retrain, Training

GoOn = Callable[[int, float], bool]  # (epoch, objective on val) -> whether to train on


@dataclass(frozen=True)
class Trained:
    """A trained model.

    Args:
        model: with the weights of its best epoch, in the form that is served.
        history: for every epoch, the weight step and the task's metrics on ``val``.
        validation: metrics of ``model`` on ``val``. They can differ from those of the best epoch, because some methods
            change the weights after training, e.g. by rounding.
        ended: whether training reached its end; False if ``go_on`` stopped it.
        reused: whether an earlier training of an embedding that trains alike was used again.
    """

    model: AnyModel
    history: list[dict[str, float]]
    validation: dict[str, float]
    ended: bool = True
    reused: bool = False


def prepare(
    experiment: Experiment,
    allocation: Allocation,
    seed: int,
    settings: Training,
    patience: int | None,
    share: float = 1.0,
) -> tuple[LitWeights, Batches]:
    """A fresh model of an allocation, ready for `pipeline.training.loop.fit`, and its batches; see `train`."""
    torch.manual_seed(seed)
    rows = experiment.training_rows(share)
    batches = experiment.task.batches(rows, settings.batch_size, seed)
    parts = (experiment.task, experiment.data.split("val"), settings.epochs * len(batches))
    options: dict[str, Any] = {"lr": settings.lr, "weight_decay": settings.weight_decay, "patience": patience}
    options |= {"cuda_graph": settings.cuda_graph, "precision": settings.precision}
    if not isinstance(settings, Retrain):
        return LitWeights(experiment.allocated(allocation, rows), *parts, lr_key="search.lr", **options), batches
    options |= {"adagrad": settings.adagrad, "schedule": settings.schedule, "lr_key": "retrain.lr"}
    if settings.tables == "torchrec":
        whole = partial(experiment.allocated, allocation, rows)
        return LitSharded(sharded(experiment, allocation), whole, *parts, **options), batches
    return LitWeights(experiment.allocated(allocation, rows), *parts, **options), batches


def train(
    experiment: Experiment,
    allocation: Allocation,
    seed: int,
    checkpoint: Path,
    *,
    settings: Training | None = None,
    share: float = 1.0,
    title: str | None = "training",
    record: Record = nowhere,
    go_on: GoOn | None = None,
    alike: Path | None = None,
) -> Trained:
    """Train a fresh model of an allocation, or resume its training from a checkpoint.

    Args:
        experiment: data, task and backbone.
        allocation: of the embedding.
        seed: of the initial weights and the order of the rows.
        checkpoint: file to resume from and to write at intervals; the caller removes it after saving the result.
        settings: None for those of ``retrain``, with its patience and schedule; others have no patience and a constant
            learning rate.
        share: 1/k to use every k-th training row.
        title: of the progress bar; None for no bar.
        record: receives (step, names, values).
        go_on: called with (epoch, objective on ``val``) after every epoch; training stops if it returns False.
        alike: folder of trainings to use again for embeddings that are trained alike, see `FieldEmbedding.trains_as`.
            It must belong to these data and this seed. None: train in any case.
    """
    patience = experiment.params.retrain.patience if settings is None else None
    chosen = experiment.params.retrain if settings is None else settings
    module, batches = prepare(experiment, allocation, seed, chosen, patience, share)
    watch = _Watch(module, record, go_on)
    module.record = watch
    once = Once(alike, experiment, module, chosen, share)
    reused = once.load()
    if not reused:
        fit(module, batches, chosen.epochs, title, checkpoint, chosen.checkpoint_seconds)
        once.save()
    model, rows = module.trained(), experiment.training_rows(share)
    if isinstance(model.embedding, ShardedTables):  # the first process alone has the whole model
        return Trained(model, module.history, module.history[module.best_epoch()], not watch.stopped)
    validation = _settle(experiment, model, module.validation, chosen, rows)
    if isinstance(chosen, Retrain) and chosen.finetune and not watch.stopped:
        validation = finetune(
            experiment,
            model,
            rows,
            seed,
            checkpoint.with_suffix(".finetune"),
            before=validation,
            chosen=chosen.finetune,
            settings=chosen,
            title=None if title is None else f"{title}, finetuning",
            steps=module.steps,
            record=record,
        )
    return Trained(model, module.history, validation, not watch.stopped, reused)


def _settle(
    experiment: Experiment, model: AnyModel, validation: Split, chosen: Training, rows: Split
) -> dict[str, float]:
    """Bring a trained model into the form that is served; the metrics on ``val``."""
    task = experiment.task
    model.embedding.calibrate(calibrated(task, model, rows))
    model.finish(chosen.dense_bits if isinstance(chosen, Retrain) else None)
    return task.measure(task.predict(model, validation), validation)


class _Watch:
    """Passes records on, and calls ``go_on`` after every epoch."""

    def __init__(self, module: LitWeights, record: Record, go_on: GoOn | None) -> None:
        self.module, self.record, self.go_on = module, record, go_on
        self.stopped = False
        self._asked = 0  # epochs for which `go_on` has been called

    def __call__(self, step: int, names: tuple[str, ...], values: object) -> None:
        self.record(step, names, values)  # type: ignore[arg-type]
        # After a resume, the history begins with the epochs of the checkpoint.
        while self.go_on is not None and self._asked < len(self.module.history):
            objective = self.module.history[self._asked][self.module.task.objective]
            if not self.go_on(self._asked, objective):
                self.stopped = True
                self.module.trainer.should_stop = True
            self._asked += 1
