"""One training for all embeddings that train alike, e.g. coded tables of several sizes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch

from pipeline.experiment.experiment import Experiment
from pipeline.training.checkpoint import is_sound
from pipeline.training.weights import LitWeights
from pipeline.workflow.outputs import whole
from pipeline.workflow.params import Training

AFTER = ("finetune", "dense_bits", "seeds", "checkpoint_seconds")  # settings that do not change a first training


class Once:
    """The best weights of a finished training on disk, without what differs between embeddings that train alike: the
    buffers of the embedding.

    Args:
        folder: of such files, for one data set and seed; None: nothing is kept.
        experiment: whose task, backbone and dimension decide the training.
        module: before its training. Nothing is kept of an embedding that trains alike with no other, see
            `pipeline.embeddings.contract.FieldEmbedding.trains_as`.
        settings: of the training.
        share: of the rows to train on.
    """

    def __init__(
        self, folder: Path | None, experiment: Experiment, module: LitWeights, settings: Training, share: float
    ) -> None:
        name = module.model.embedding.trains_as()
        params = experiment.params.only(["task", "dim", "backbone"]).to_dict()
        kept = {key: value for key, value in settings.model_dump(mode="json").items() if key not in AFTER}
        recipe = json.dumps([params, kept, share, module.model.kept.names], sort_keys=True)
        digest = hashlib.sha256(recipe.encode()).hexdigest()[:16]
        self.file = None if folder is None or name is None else folder / f"{name}, {digest}.pt"
        self.module = module
        own = {f"embedding.{buffer}" for buffer, _ in module.model.embedding.named_buffers()}
        self.names = [key for key in module.model.state_dict() if key not in own]

    def load(self) -> bool:
        """Whether there is a finished training; the module is then as after it."""
        if self.file is None or not is_sound(self.file):
            return False
        module = self.module
        state = torch.load(self.file, map_location=next(module.model.parameters()).device)
        module.steps, module.history = state["steps"], state["history"]
        module.best = module.model.state_dict() | state["best"]
        return True

    def save(self) -> None:
        """Keep the training of the module, which is finished."""
        if self.file is not None:
            module = self.module
            best = {name: module.best[name] for name in self.names}
            with whole(self.file) as draft:
                torch.save({"steps": module.steps, "history": module.history, "best": best}, draft)
