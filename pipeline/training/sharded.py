"""Training with tables that are divided among processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.data.batches import Batch
from pipeline.data.share import Share
from pipeline.embeddings.mixed import MixedTables
from pipeline.embeddings.sharded import ShardedTables
from pipeline.embeddings.shards import exchanging
from pipeline.models.model import Model, first_order_of
from pipeline.models.retriever import AnyModel
from pipeline.training.checkpoint import is_sound
from pipeline.training.weights import LitWeights


class LitSharded(LitWeights):
    """Trains a model with `ShardedTables`, whose rows Adagrad updates in the backward pass.

    A checkpoint is the file of the first process, with all but the tables, and a file of each process with its pieces.
    The file of the first one is written last and names the step, so files of another step are never taken for its own.

    Args:
        model: with `ShardedTables`.
        whole: makes the same model with `MixedTables`, called in the first process after the training.
        args, options: of `LitWeights`; ``adagrad`` must be given.
    """

    def __init__(self, model: Model, whole: Callable[[], AnyModel], *args: Any, **options: Any) -> None:
        super().__init__(model, *args, **options)
        self.whole = whole
        self.best_tables: list[Tensor] = []  # of the own pieces
        self._saved: dict[str, list[Tensor]] = {}  # what the checkpoint to go on from has of the own pieces

    @property
    def tables(self) -> ShardedTables:
        assert isinstance(self.model.embedding, ShardedTables)
        return self.model.embedding

    @property
    def group(self) -> Share:
        """The processes that hold the tables."""
        return self.tables.share

    def _partial(self) -> list[nn.Parameter]:
        return list(self.model.parameters())

    def weight_step(self, batch: Batch, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        assert self.adagrad is not None
        self.tables.shards.learn_at(self.adagrad * self.factor())
        with exchanging():
            super().weight_step(batch, optimizers)

    def keep_best(self) -> None:
        super().keep_best()
        self.best_tables = [weight.clone() for weight in self.tables.shards.weights]

    def trained(self) -> AnyModel:
        """In the first process, the model with ordinary tables; in the others, what they have of it."""
        if self.group.rank:
            self.tables.collect(self.best_tables, None, None)
            return self.model
        model = self.whole()
        model.load_state_dict(self.best, strict=False)  # what it lacks are the tables
        embedding, first_order = model.embedding, first_order_of(model.get_submodule("backbone"))
        assert isinstance(embedding, MixedTables)
        table = None if first_order is None else first_order.table
        self.tables.collect(self.best_tables, embedding, None if table is None else table.weight)
        return model

    def predict(self, rows: slice) -> np.ndarray:
        """All processes predict as many rows, because they look up the tables together; the last rows are the own."""
        most = -(-len(self.validation) // self.group.number)
        start = max(0, rows.stop - most)
        return super().predict(slice(start, start + most))[rows.start - start : rows.stop - start]

    def save(self, checkpoint: Path, due: bool) -> bool:
        """The first process says for all whether a checkpoint is due."""
        if not bool(self.group.sum(torch.tensor(float(due)))):
            return False
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        shards, own = self.tables.shards, self._part(checkpoint, self.steps)
        draft = own.with_name(f"{own.name}.draft")
        torch.save({"weights": shards.weights, "squares": shards.squares, "best": self.best_tables}, draft)
        draft.replace(own)
        self._wait()
        super().save(checkpoint, due)
        self._wait()
        for file in checkpoint.parent.glob(f"{checkpoint.name}.{self.group.rank}-*"):
            if file != own:
                file.unlink()
        return True

    def resumes(self, checkpoint: Path) -> bool:
        if not super().resumes(checkpoint):
            return False
        training = torch.load(checkpoint)["training"]
        begun, file = training["processes"], self._part(checkpoint, training["steps"])
        if begun != self.group.number:
            raise ValueError(
                f"{checkpoint}: {begun} processes have begun this training, each with its part of the tables, and "
                f"there are {self.group.number}; start {begun} (retrain.devices), or remove the file to begin anew"
            )
        sound = is_sound(file)
        if bool(self.group.sum(torch.tensor(float(not sound)))):
            return False
        self._saved = torch.load(file)
        return True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["training"]["processes"] = self.group.number

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        shards = self.tables.shards
        for ours, name in ((shards.weights, "weights"), (shards.squares, "squares")):
            for tensor, values in zip(ours, self._saved[name], strict=True):
                tensor.copy_(values)
        self.best_tables, self._saved = self._saved["best"], {}

    def _part(self, checkpoint: Path, steps: int) -> Path:
        """The file of this process that goes with a checkpoint."""
        return checkpoint.with_name(f"{checkpoint.name}.{self.group.rank}-{steps}")

    def _wait(self) -> None:
        """Until all processes are here."""
        self.group.sum(torch.zeros(1))
