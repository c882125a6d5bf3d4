"""The two Lightning loops: weights alone, and weights with an architecture."""

from __future__ import annotations

import logging
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from tqdm import tqdm

from pipeline.bilevel import architecture_gradient
from pipeline.data import Batches, Split
from pipeline.embeddings import Table
from pipeline.metrics import auc, logloss
from pipeline.model import CTRModel, predict
from pipeline.optim import RowAdam
from pipeline.shared_memory import Memory

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


@dataclass(frozen=True, kw_only=True)
class Steps:
    """How the architecture is trained.

    Args:
        lr: of Adam on the architecture parameters.
        every: f, weight steps per architecture step.
        order: 1 or 2; see `pipeline.bilevel`.
        level: "bilevel": on batches of ``arch``. "single": on the training batches themselves, together with
            the weights (AutoDim-s).
        margin: a choice is decided if its probability leads the second by at least this.
        stable_steps: share of the planned steps that all choices have to be decided and unchanged to end the
            search early; None for never.
        trajectory_every: architecture steps between recorded points of the trajectory.
    """

    lr: float = 0.001
    every: int = 10
    order: Literal[1, 2] = 1
    level: Literal["bilevel", "single"] = "bilevel"
    margin: float = 0.1
    stable_steps: float | None = 0.2
    trajectory_every: int = 1

    def __post_init__(self) -> None:
        if self.every < 1 or self.trajectory_every < 1:
            raise ValueError(f"every and trajectory_every must be at least 1, however: {self}")
        if self.order not in (1, 2) or self.level not in ("bilevel", "single"):
            raise ValueError(f"order must be 1 or 2, level 'bilevel' or 'single', however: {self}")
        if not 0 <= self.margin < 1:
            raise ValueError(f"margin must lie in [0, 1), however: {self.margin}")
        if self.stable_steps is not None and not 0 < self.stable_steps <= 1:
            raise ValueError(f"stable_steps is a share, above 0 and up to 1, or null, however: {self.stable_steps}")


class LitSearch(LitCTR):
    """Bilevel training of a supernet: weights on ``train``, architecture on ``arch``. Zhao et al. 2021, alg. 1.

    Args:
        arch: endless batches of the part ``arch``.
        architecture: how it is trained.
        names: F field names, for records.
        candidates: for each field its candidate dims.
        prices: (F, N) bytes; anything where a field has fewer than N.
    """

    keeps_best = False  # a supernet is not served

    def __init__(
        self,
        model: CTRModel,
        validation: Split,
        planned: int,
        arch: Batches,
        architecture: Steps,
        names: Sequence[str],
        candidates: Sequence[Sequence[int]],
        prices: np.ndarray,
        **options: Any,
    ) -> None:
        super().__init__(model, validation, planned, **options)
        self.arch, self.architecture = arch, architecture
        most = max(map(len, candidates))
        self.there = np.array([[n < len(row) for n in range(most)] for row in candidates])
        self.dims = np.array([[*row, *[0] * (most - len(row))] for row in candidates])
        self.prices = np.where(self.there, prices, 0)
        self.trajectory: list[tuple[int, float, Tensor]] = []  # step, tau, probabilities (F, N)
        self.arch_steps = self.stable = 0
        self.choice: list[int] = []
        self.expected_bytes = math.nan
        self._names = (
            *(f"p/{name}/{d}" for name, row in zip(names, candidates, strict=True) for d in row),
            *(f"expected_dim/{name}" for name in names),
            *("entropy", "expected_bytes"),
        )

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        self._arch_optimizer = None
        if not self.model.embedding.arch_parameters():
            return super().configure_optimizers()
        arch = torch.optim.Adam(self.model.embedding.arch_parameters(), lr=self.architecture.lr)
        if self.architecture.level == "single":
            return [*super().configure_optimizers(), arch]
        self._arch_optimizer = arch
        return super().configure_optimizers()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        super().training_step(batch, batch_idx)
        if self.model.embedding.warming():
            return
        if self._arch_optimizer is None:
            self._observe()
        elif self.steps % self.architecture.every == 0:
            self.arch_step(batch)
            self._observe()

    def arch_step(self, batch: tuple[Tensor, Tensor]) -> None:
        """One step of the architecture on the next batch of ``arch``; ``batch`` serves the second order."""
        assert self._arch_optimizer is not None
        arch_batch = self.transfer_batch_to_device(self.arch.take(), self.device, 0)
        with frozen_statistics(self.model):
            architecture_gradient(
                lambda: self.loss(arch_batch, "arch"),
                lambda: self.loss(batch, "train"),
                self.model.embedding.arch_parameters(),
                self.weights(),
                xi=self.lr if self.architecture.order == 2 else 0.0,
            )
        self._arch_optimizer.step()

    def passes(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(logits, labels) of every batch of ``arch`` once, in order, as the supernet then is."""
        batches = Batches(self.arch.split, -(-len(self.arch.split) // len(self.arch)))
        self.model.eval()
        for batch in batches:
            ids, labels = self.transfer_batch_to_device(batch, self.device, 0)
            yield self.model(ids), labels

    @torch.no_grad()
    def _observe(self) -> None:
        """Record the trajectory, and end the search once all choices have stood long enough."""
        self.arch_steps += 1
        due = (self.arch_steps - 1) % self.architecture.trajectory_every == 0
        watched = self.model.embedding.watched() if due else {}
        scores = self.model.embedding.scores()
        if watched:
            self.record(self.steps, tuple(watched), list(watched.values()))
        if scores is None:
            return
        p = scores.exp().cpu()
        expected = (p.numpy() * self.dims).sum(1)
        self.expected_bytes = float((p.numpy() * self.prices).sum())
        if due:
            self.trajectory.append((self.steps, watched.get("tau", math.nan), p))
            entropy = float(torch.special.entr(p).sum(1).mean())
            values = [*p.numpy()[self.there].tolist(), *expected.tolist(), entropy, self.expected_bytes]
            self.record(self.steps, self._names, values)
        choice = p.argmax(1).tolist()
        decided = bool((margins(p) >= self.architecture.margin).all())
        self.stable = self.stable + 1 if decided and choice == self.choice else 0
        self.choice = choice
        if self.architecture.stable_steps is not None:
            per_step = 1 if self._arch_optimizer is None else self.architecture.every
            if self.stable * per_step >= self.architecture.stable_steps * self.planned:
                self.trainer.should_stop = True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["search"] = {
            "arch": self.arch.state_dict(),
            "optimizer": self._arch_optimizer.state_dict() if self._arch_optimizer else None,
            "trajectory": self.trajectory,
            "counts": (self.arch_steps, self.stable, self.choice),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        state = checkpoint["search"]
        self.arch.load_state_dict(state["arch"])
        self.trajectory = state["trajectory"]
        self.arch_steps, self.stable, self.choice = state["counts"]
        self._arch_state = state["optimizer"]

    def on_train_start(self) -> None:
        super().on_train_start()
        if self._arch_optimizer is not None and getattr(self, "_arch_state", None) is not None:
            self._arch_optimizer.load_state_dict(self._arch_state)
            self._arch_state = None

    def progress(self) -> dict[str, str]:
        if math.isnan(self.expected_bytes):
            return super().progress() | {"expected MB": "warm-up"}
        return super().progress() | {"expected MB": f"{self.expected_bytes / 1e6:.3g}"}


def margins(p: Tensor) -> Tensor:
    """(F, N) probabilities -> (F,) lead of the first candidate over the second; 1 where there is but one."""
    top = p.topk(min(2, p.shape[1]), dim=1).values
    return top[:, 0] - top[:, 1] if top.shape[1] > 1 else torch.ones(len(p))


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Normalise by the batch, as in training, yet leave running statistics to the training rows."""
    kept = [(m, m.momentum) for m in model.modules() if isinstance(getattr(m, "momentum", None), float)]
    for module, _ in kept:
        module.momentum = 0.0  # type: ignore[assignment]
    try:
        yield
    finally:
        for module, momentum in kept:
            module.momentum = momentum


class _Bar(pl.Callback):
    def __init__(self, title: str, total: int) -> None:
        self.title, self.total = title, total

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, LitCTR)
        self.bar = tqdm(total=self.total, initial=pl_module.steps, desc=self.title, unit=" steps", delay=1)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, LitCTR)
        behind = pl_module.steps - self.bar.n
        if behind >= 50:
            self.bar.set_postfix(pl_module.progress(), refresh=False)
            self.bar.update(behind)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if hasattr(self, "bar"):
            self.bar.close()


class _Checkpoint(pl.Callback):
    """Save every so many seconds, whole or not at all."""

    def __init__(self, path: Path, seconds: float) -> None:
        self.path, self.seconds, self.last = path, seconds, time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *batch: Any) -> None:
        last_of_epoch = batch[-1] + 1 >= trainer.num_training_batches
        # After the last batch the epoch's validation is due, which a run resumed from here would skip.
        if time.monotonic() - self.last < self.seconds or last_of_epoch:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_suffix(f".{os.getpid()}")
        trainer.save_checkpoint(draft)
        draft.replace(self.path)
        self.last = time.monotonic()


def fit(module: LitCTR, batches: Batches, epochs: int, title: str, checkpoint: Path, seconds: float = 60) -> None:
    """Train to the end, from ``checkpoint`` if there is one; it is written every so many seconds and removed."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # its hints at other products
    trainer = pl.Trainer(
        max_epochs=epochs,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        deterministic=torch.cuda.is_available() or None,  # a CPU's sums come in one order anyway
        callbacks=[_Bar(title, epochs * len(batches)), _Checkpoint(checkpoint, seconds)],
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # a matter between Lightning and torch
        trainer.fit(module, batches, ckpt_path=checkpoint if checkpoint.exists() else None)  # type: ignore[arg-type]
