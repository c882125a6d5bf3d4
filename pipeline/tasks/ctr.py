"""Click-through rate: the probability of label 1, judged by AUC, logloss and calibration."""

from __future__ import annotations

import numpy as np
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from pipeline.data.batches import Batch, Batches
from pipeline.data.encoded import Encoded
from pipeline.data.split import Split
from pipeline.metrics.auc import auc, auc_influence
from pipeline.metrics.probability import calibration_error, logloss
from pipeline.models.model import Model, outputs

ANSWER = "probability"  # of label 1
METRICS = {"auc": "AUC", "logloss": "logloss", "calibration_error": "calibration error"}


def check(data: Encoded) -> None:
    """Check that every part has rows of label 0 and of label 1, and no other labels.

    Raises:
        ValueError: naming the part and the remedy, if not.
    """
    if data.interactions is not None:
        raise ValueError(
            f"{data.folder}: holds interactions of users and items without labels, and task ctr needs labels; set "
            "task.name to retrieval in params.yaml"
        )
    for part, labels in data.labels.items():
        if not labels.binary:
            raise ValueError(
                f"{data.folder}: labels of part {part!r} go from {labels.least:g} to {labels.most:g}, and task ctr "
                "needs labels of 0 and 1; name the value that means 1 with the data set's option 'positive', or set "
                "another task.name in params.yaml"
            )
        if labels.least == labels.most:
            raise ValueError(
                f"{data.folder}: all {labels.rows:,} rows of part {part!r} have the label {labels.least:g}, and AUC "
                f"needs both; raise encode.split.{part} in params.yaml, or give more rows"
            )


def batches(split: Split, batch_size: int, seed: int | None = None) -> Batches:
    """Shuffled batches with a seed; batches in order without one."""
    return Batches(split, batch_size, seed)


def loss(model: Model, batch: Batch) -> Tensor:
    """Mean binary cross-entropy, in nats."""
    return binary_cross_entropy_with_logits(model(batch.ids), batch.labels)


def probe(model: Model, batch: Batch) -> Tensor:
    """Sum of sqrt(p (1 - p)) z over the rows; p (1 - p) is the second derivative of the loss in the logit z."""
    logits: Tensor = model(batch.ids)
    p = logits.detach().sigmoid()
    return ((p * (1 - p)).sqrt() * logits).sum()


def predict(model: Model, split: Split) -> np.ndarray:
    """(n,) float32 logits."""
    return outputs(model, split)


def answer(logits: Tensor) -> Tensor:
    """(n,) probabilities of label 1."""
    return logits.sigmoid()


def measure(predictions: np.ndarray, split: Split) -> dict[str, float]:
    """The metrics of logits (n,); AUC is NaN if all labels are equal."""
    labels = split.all_labels()
    return {
        "auc": auc(labels, predictions) if 0 < labels.sum() < len(labels) else float("nan"),
        "logloss": logloss(labels, predictions),
        "calibration_error": calibration_error(labels, predictions),
    }


def influence(predictions: np.ndarray, split: Split) -> np.ndarray:
    """The influence (n,) of every row on AUC."""
    return auc_influence(split.all_labels(), predictions)


def ceiling(expected: np.ndarray, split: Split) -> float:
    """AUC of the true probabilities (n,)."""
    return auc(split.all_labels(), expected)
