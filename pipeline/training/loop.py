"""The training loop: runs a Lightning module to its end, with a progress bar and checkpoints to resume from."""

from __future__ import annotations

import contextlib
import logging
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from pipeline.data.batches import Batches
from pipeline.training import ranks
from pipeline.training.ahead import Ahead
from pipeline.training.weights import LitWeights
from pipeline.workflow.progress import progress


class _Bar(pl.Callback):
    """The progress bar, updated every 50 steps."""

    def __init__(self, title: str | None, total: int) -> None:
        self.title, self.total = title, total

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, LitWeights)
        self.bar = progress(
            total=self.total, initial=pl_module.steps, desc=self.title, unit=" steps", disable=self.title is None
        )

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, LitWeights)
        behind = pl_module.steps - self.bar.n
        if behind >= 50:
            self.bar.set_postfix(pl_module.progress(), refresh=False)
            self.bar.update(behind)

    def close(self) -> None:
        if hasattr(self, "bar"):
            self.bar.close()


class _Checkpoint(pl.Callback):
    """Has a checkpoint saved every ``seconds``."""

    def __init__(self, path: Path, seconds: float) -> None:
        self.path, self.seconds, self.last = path, seconds, time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *batch: Any) -> None:
        assert isinstance(pl_module, LitWeights)
        last_of_epoch = batch[-1] + 1 >= trainer.num_training_batches
        # The validation of an epoch follows its last batch; a run that resumed from there would skip it.
        due = ranks.first() and time.monotonic() - self.last >= self.seconds
        if not last_of_epoch and pl_module.save(self.path, due):
            self.last = time.monotonic()


def fit(
    module: LitWeights, batches: Batches, epochs: int, title: str | None, checkpoint: Path, seconds: float = 60
) -> None:
    """Train to the end, from ``checkpoint`` if there is one, together with the other processes if there are any.

    Args:
        module: to train.
        batches: of the training rows.
        epochs: number of epochs, including those of the checkpoint.
        title: of the progress bar; None for no bar.
        checkpoint: file to resume from, unless it is damaged, and to write; it is not removed at the end.
        seconds: between two checkpoints.

    Raises:
        ValueError: if several processes cannot share this training, or a GPU cannot replay its steps.
        ConnectionError: if another process has ended.
    """
    if (share := ranks.share()) is not None:
        module.divide(share, int(np.diff(batches.bounds).min()))
    if module.cuda_graph and torch.cuda.is_available():
        module.fix()
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # hides tips about other products
    bar = _Bar(title if ranks.first() else None, epochs * len(batches))
    fed = Ahead(batches, torch.device("cuda", ranks.device())) if torch.cuda.is_available() else batches
    trainer = pl.Trainer(
        max_epochs=epochs,
        devices=[ranks.device()] if torch.cuda.is_available() else 1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        deterministic=torch.cuda.is_available() or None,  # a CPU adds in a fixed order anyway
        callbacks=[bar, _Checkpoint(checkpoint, seconds)],
    )
    with contextlib.closing(bar), warnings.catch_warnings():  # Lightning closes nothing on Ctrl-C
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning uses a deprecated class of torch
        resumes = module.resumes(checkpoint)
        trainer.fit(module, fed, ckpt_path=checkpoint if resumes else None)  # type: ignore[arg-type]
    if module.fixed:
        module.model.fix(False)  # type: ignore[operator]
