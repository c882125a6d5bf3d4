"""The Lightning module that trains weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from pipeline.data.split import Split
from pipeline.embeddings.hashed_memory import Memory
from pipeline.embeddings.table import Table
from pipeline.metrics.auc import auc
from pipeline.metrics.probability import logloss
from pipeline.models.model import CTRModel, predict
from pipeline.training.row_adam import RowAdam

Record = Callable[[int, tuple[str, ...], Sequence[float]], None]
LOSS_STEPS = 20  # steps that one recorded training loss is the mean of


def _nowhere(step: int, names: tuple[str, ...], values: Sequence[float]) -> None:
    """Record nothing."""


class LitCTR(pl.LightningModule):
    """Trains the weights of a click model; watches AUC on ``val`` and keeps the weights of the best epoch.

    Optimisation is manual, because tables and dense weights have different optimisers. Steps are counted here:
    Lightning's ``global_step`` counts optimisers.

    Args:
        model: ids (B, S) -> logits (B,).
        validation: rows of the part ``val``.
        planned: weight steps planned in all.
        lr: of RowAdam for tables and of Adam for the rest.
        weight_decay: L2 of looked-up rows, see `RowAdam`, and of a `Memory`, of which every batch looks up most.
        patience: epochs without a better AUC before training ends; None for never.
        record: receives (step, names, values).
    """

    keeps_best = True

    def __init__(
        self,
        model: CTRModel,
        validation: Split,
        planned: int,
        *,
        lr: float = 0.001,
        weight_decay: float = 0.0,
        patience: int | None = None,
        record: Record = _nowhere,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model, self.validation, self.planned = model, validation, planned
        self.lr, self.weight_decay, self.patience, self.record = lr, weight_decay, patience, record
        self.steps = 0
        self.history: list[dict[str, float]] = []  # one entry per epoch: step, auc, logloss on val
        self.best: dict[str, Tensor] = {}
        self._losses: list[Tensor] = []
        self._rng: list[Tensor] = []  # of the CPU and of each GPU

    def weights(self) -> list[nn.Parameter]:
        arch = {id(p) for p in self.model.embedding.arch_parameters()}
        return [p for p in self.model.parameters() if id(p) not in arch]

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        tables = [m.weight for m in self.model.modules() if isinstance(m, Table)]
        ids = {id(p) for p in tables}
        shared = {id(m.weight) for m in self.model.modules() if isinstance(m, Memory)}
        dense = [p for p in self.weights() if id(p) not in ids | shared]
        memories = [p for p in self.weights() if id(p) in shared]
        groups: list[dict[str, Any]] = [{"params": dense}]
        if memories:
            groups.append({"params": memories, "weight_decay": self.weight_decay})
        adam: torch.optim.Optimizer = torch.optim.Adam(groups, lr=self.lr, fused=True)
        return [RowAdam(tables, lr=self.lr, weight_decay=self.weight_decay), adam] if tables else [adam]

    def loss(self, batch: tuple[Tensor, Tensor], part: str) -> Tensor:
        """Mean log-loss of a batch, with what the embedding adds to it."""
        ids, labels = batch
        return self.model.embedding.objective(binary_cross_entropy_with_logits(self.model(ids), labels), part)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.weight_step(batch, self.trainer.optimizers)

    def weight_step(self, batch: tuple[Tensor, Tensor], optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """One step of all optimizers on one batch."""
        self.model.embedding.before_step(self.steps, self.planned)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss = self.loss(batch, "train")
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        self.steps += 1
        self._losses.append(loss.detach())
        if len(self._losses) >= LOSS_STEPS:
            self.record(self.steps, ("train/loss",), (float(torch.stack(self._losses).mean()),))
            self._losses.clear()

    def on_train_epoch_end(self) -> None:
        labels, logits = self.validation.all_labels(), predict(self.model, self.validation)
        entry = {"step": self.steps, "auc": auc(labels, logits), "logloss": logloss(labels, logits)}
        self.history.append(entry)
        self.record(self.steps, ("val/auc", "val/logloss"), (entry["auc"], entry["logloss"]))
        best = max(range(len(self.history)), key=lambda e: self.history[e]["auc"])
        if self.keeps_best and best == len(self.history) - 1:
            self.best = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        if self.patience is not None and len(self.history) - 1 - best >= self.patience:
            self.trainer.should_stop = True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["training"] = {
            "steps": self.steps,
            "history": self.history,
            "best": self.best,
            "losses": self._losses,
            "rng": [torch.get_rng_state(), *torch.cuda.get_rng_state_all()],
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["training"]
        self.steps, self.history, self.best = state["steps"], state["history"], state["best"]
        self._losses, self._rng = state["losses"], state["rng"]

    def on_train_start(self) -> None:
        self._losses = [loss.to(self.device) for loss in self._losses]  # a checkpoint's are on the CPU
        if self._rng:  # Lightning does not keep it; dropout and Gumbel noise depend on it
            torch.set_rng_state(self._rng[0])
            torch.cuda.set_rng_state_all(self._rng[1 : 1 + torch.cuda.device_count()])
            self._rng = []

    def progress(self) -> dict[str, str]:
        """What the progress bar says beside the speed."""
        return {"val AUC": f"{self.history[-1]['auc']:.4f}"} if self.history else {}
