"""Retrained models on disk: their weights, allocation and training history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pipeline.allocation.allocation import Allocation
from pipeline.experiment.experiment import Experiment
from pipeline.experiment.method import build
from pipeline.models.model import Model, assemble
from pipeline.workflow.outputs import broken, whole, write_json

WEIGHTS, ALLOCATION, HISTORY = "model.safetensors", "allocation.json", "history.json"


def save(folder: Path, model: Model, allocation: Allocation, history: Sequence[Mapping[str, float]]) -> None:
    """Write the folder of a trained model, whole or not at all.

    Args:
        folder: to write.
        model: with its final weights.
        allocation: of the model.
        history: for every epoch, the weight step and the task's metrics on ``val``.
    """
    with whole(folder) as draft:
        draft.mkdir()
        state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        save_file(state, draft / WEIGHTS)
        allocation.save(draft / ALLOCATION)
        write_json(draft / HISTORY, list(history))


def load(folder: Path, experiment: Experiment) -> tuple[Model, Allocation]:
    """A model that `save` wrote, and its allocation.

    Raises:
        ValueError: naming the file that does not fit the experiment's schema and backbone.
        FileNotFoundError: if a file is missing.
    """
    allocation = Allocation.load(folder / ALLOCATION, experiment.schema)
    model = assemble(
        experiment.schema, experiment.dim, allocation, build, experiment.backbone, experiment.backbone_options
    )
    weights = folder / WEIGHTS
    weights.stat()  # the error of safetensors does not name a missing file
    if not weights.is_file():
        raise broken(weights, "must be a file")
    try:
        state = load_file(weights)
        types = {name: tensor.dtype for name, tensor in model.state_dict().items()}
        if types != {name: tensor.dtype for name, tensor in state.items()}:
            raise RuntimeError("other tensors, or of other types")
        model.load_state_dict(state)
    except (RuntimeError, SafetensorError) as error:
        why = "does not hold the model that params.yaml, schema.json and allocation.json describe"
        raise broken(weights, why) from error
    for name, tensor in state.items():
        if not bool(torch.isfinite(tensor).all()):
            raise broken(weights, f"{name} holds numbers that are not finite")
    return model, allocation
