"""What a user does with a recommended item: the chances of skip, click, order and leave, judged by McFadden's R^2.

It is step 1 of DeepChain (Zhao et al. 2020, CIKM, arXiv 1902.03987): the behaviour model that tells agents what to
expect. NOTE[DIFF]: the chances are as the softmax gives them, and their calibration error is a metric. Whoever needs
calibrated ones fits a temperature on ``val``, see `pipeline.chain.behaviour.temperature`: it changes no order of rows
and no table.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from pipeline.data.batches import Batch, Batches
from pipeline.data.encoded import Encoded
from pipeline.data.split import Split
from pipeline.metrics import choice
from pipeline.models.model import Model, outputs

COLUMNS = ("skip", "click", "order", "leave")  # by label
OUTPUTS = len(COLUMNS)
ANSWER = "chances"
METRICS = {"r_squared": "R²", "logloss": "logloss", "calibration_error": "calibration error"}


def check(data: Encoded) -> None:
    """Check that the labels are whole numbers from 0 to 3, and that every part has two different ones.

    Raises:
        ValueError: naming the part and the remedy, if not.
    """
    if data.interactions is not None:
        raise ValueError(
            f"{data.folder}: holds interactions of users and items without labels, and task feedback needs labels; set "
            "task.name to retrieval in params.yaml"
        )
    remedy = (
        f"use labels 0 {COLUMNS[0]}, 1 {COLUMNS[1]}, 2 {COLUMNS[2]}, 3 {COLUMNS[3]}, e.g. with the data set sessions"
    )
    for part, labels in data.labels.items():
        if not 0 <= labels.least <= labels.most < OUTPUTS:
            raise ValueError(
                f"{data.folder}: labels of part {part!r} go from {labels.least:g} to {labels.most:g}, and task "
                f"feedback needs whole numbers from 0 to 3; {remedy}"
            )
        if labels.least == labels.most:
            raise ValueError(
                f"{data.folder}: all {labels.rows:,} rows of part {part!r} have the label {labels.least:g}, and R² "
                f"needs two; raise encode.split.{part} in params.yaml, or give more rows"
            )
    trained = data.split("train").all_labels()
    broken = trained != np.floor(trained)
    if broken.any():
        raise ValueError(
            f"{data.folder}: part 'train' has the label {trained[broken][0]:g}, and task feedback needs whole "
            f"numbers from 0 to 3; {remedy}"
        )


def batches(split: Split, batch_size: int, seed: int | None = None) -> Batches:
    """Shuffled batches with a seed; batches in order without one."""
    return Batches(split, batch_size, seed)


def loss(model: Model, batch: Batch) -> Tensor:
    """Mean cross-entropy, in nats."""
    return cross_entropy(model(batch.ids), batch.labels.long())


def probe(model: Model, batch: Batch) -> Tensor:
    """Sum of z_j - sum(p z) over the rows, with j drawn from p; see `pipeline.training.task.Task.probe`.

    The mean of the outer products of its derivatives in z is the second derivative of the loss, diag(p) - p p^T. The
    draws depend on the ids only, so another run makes the same ones.
    """
    logits: Tensor = model(batch.ids)
    p = logits.detach().softmax(1)
    generator = torch.Generator().manual_seed(int(batch.ids.long().sum()) % 2**63)
    drawn = torch.multinomial(p.cpu(), 1, generator=generator).to(p.device)
    return (logits.gather(1, drawn)[:, 0] - (p * logits).sum(1)).sum()


def predict(model: Model, split: Split) -> np.ndarray:
    """(n, 4) float32 logits."""
    return outputs(model, split)


def answer(logits: Tensor) -> Tensor:
    """(n, 4) chances."""
    return logits.softmax(1)


def measure(predictions: np.ndarray, split: Split) -> dict[str, float]:
    """The metrics of logits (n, 4); R^2 is NaN if all labels are equal."""
    labels = split.all_labels()
    return {
        "r_squared": choice.r_squared(labels, predictions),
        "logloss": float(choice.losses(labels, predictions).mean()),
        "calibration_error": choice.calibration_error(labels, predictions),
    }


def influence(predictions: np.ndarray, split: Split) -> np.ndarray:
    """The influence (n,) of every row on R^2."""
    return choice.r_squared_influence(split.all_labels(), predictions)
