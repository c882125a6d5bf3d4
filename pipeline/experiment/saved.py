"""Retrained models on disk: their weights, allocation and training history."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pipeline.allocation.allocation import Allocation
from pipeline.experiment.experiment import Experiment
from pipeline.experiment.method import build
from pipeline.experiment.train import Trained
from pipeline.models.model import Model, assemble
from pipeline.workflow.outputs import broken, whole, write_json

WEIGHTS, ALLOCATION, HISTORY = "model.safetensors", "allocation.json", "history.json"


def save(folder: Path, trained: Trained, allocation: Allocation) -> None:
    """Write the folder of a model, whole or not at all."""
    with whole(folder) as draft:
        draft.mkdir()
        state = {name: tensor.contiguous() for name, tensor in trained.model.state_dict().items()}
        save_file(state, draft / WEIGHTS)
        allocation.save(draft / ALLOCATION)
        write_json(draft / HISTORY, trained.history)


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
    try:
        model.load_state_dict(load_file(weights))
    except (RuntimeError, SafetensorError) as error:
        why = "does not hold the model that params.yaml, schema.json and allocation.json describe"
        raise broken(weights, why) from error
    return model, allocation
