"""A second, short training of a model in the form that is served."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.data.split import Split
from pipeline.experiment.experiment import Experiment
from pipeline.models.retriever import AnyModel
from pipeline.training.loop import fit
from pipeline.training.weights import LitWeights, Record, nowhere
from pipeline.workflow.params import Finetune, Training


def finetune(
    experiment: Experiment,
    model: AnyModel,
    rows: Split,
    seed: int,
    checkpoint: Path,
    *,
    before: dict[str, float],
    chosen: Finetune,
    settings: Training,
    title: str | None = "finetuning",
    steps: int = 0,
    record: Record = nowhere,
) -> dict[str, float]:
    """Train a finished model on, or resume that. If it does not improve the objective on ``val``, restore the model.

    The learning rate falls linearly to 0, and there is no weight decay.

    Args:
        experiment: data and task.
        model: after `pipeline.models.model.Model.finish`; changed in place.
        rows: to train on.
        seed: of the order of the rows and of dropout.
        checkpoint: file to resume from and to write at intervals; removed at the end.
        before: metrics of the model on ``val``.
        chosen: epochs and learning rate.
        settings: batch size, precision, and seconds between two checkpoints.
        title: of the progress bar; None for no bar.
        steps: steps of the first training; records count on from there.
        record: receives (step, names, values).

    Returns:
        The metrics of the model on ``val``.
    """
    task, val = experiment.task, experiment.data.split("val")

    def record_after(step: int, names: tuple[str, ...], values: Sequence[float]) -> None:
        record(steps + step, names, values)

    restored = {name: value.detach().clone() for name, value in model.state_dict().items()}
    torch.manual_seed(seed)
    model.train()
    batches = task.batches(rows, settings.batch_size, seed + 1)
    planned = chosen.epochs * len(batches)
    options: dict[str, Any] = {"lr": chosen.lr, "lr_key": "retrain.finetune.lr", "schedule": "linear"}
    module = LitWeights(model, task, val, planned, record=record_after, precision=settings.precision, **options)
    fit(module, batches, chosen.epochs, title, checkpoint, settings.checkpoint_seconds)
    model.load_state_dict(module.best)
    model.finish()
    after = task.measure(task.predict(model, val), val)
    checkpoint.unlink(missing_ok=True)
    if after[task.objective] > before[task.objective]:
        return after
    model.load_state_dict(restored)
    return before
