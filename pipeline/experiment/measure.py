"""Measure the quality and the cost of a trained model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.data.split import Split
from pipeline.embeddings.cost import Cost, cost, training_bytes
from pipeline.experiment.experiment import Experiment
from pipeline.models.dense import packed
from pipeline.models.retriever import AnyModel, Retriever


@dataclass(frozen=True)
class Measured:
    """A model on n rows.

    Args:
        metrics: of the task.
        predictions: for all rows, in order.
        influence: (n,) of each row on the first metric; see `pipeline.training.task.Contract`.
        cost: of serving the embedding.
        model_bytes: of serving the whole model, see `model_bytes`.
        params: number of parameters of the whole model.
        training_bytes: of the embedding, see `pipeline.embeddings.cost.training_bytes`.
    """

    metrics: dict[str, float]
    predictions: np.ndarray
    influence: np.ndarray
    cost: Cost
    model_bytes: int
    params: int
    training_bytes: int


def measure(experiment: Experiment, model: AnyModel, split: Split) -> Measured:
    """The metrics and the cost of a trained model on all rows of a split."""
    task = experiment.task
    predictions = task.predict(model, split)
    return Measured(
        task.measure(predictions, split),
        predictions,
        task.influence(predictions, split),
        cost(model.embedding.packed()),
        model_bytes(model),
        sum(p.numel() for p in model.parameters()),
        training_bytes(model.embedding),
    )


def model_bytes(model: AnyModel) -> int:
    """What a model costs to serve: its packed embedding; its packed backbone, e.g. first-order weights in float32 and
    an MLP in the bits of its weights; and the graph of a graph backbone, two numbers of 4 bytes for each edge."""
    graph = 8 * len(model.edges.items) if isinstance(model, Retriever) and model.is_graph else 0
    return cost(model.embedding.packed()).bytes + cost(packed(model.backbone)).bytes + graph
