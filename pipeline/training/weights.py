"""The Lightning module that trains the weights of a model."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from pipeline.data.batches import Batch
from pipeline.data.share import Share, divide
from pipeline.data.split import Split
from pipeline.embeddings.hashed_memory import Memory
from pipeline.embeddings.table import Table
from pipeline.models.retriever import AnyModel, NotFinite, Retriever
from pipeline.training.checkpoint import is_sound
from pipeline.training.replay import Replay
from pipeline.training.row_adagrad import RowAdagrad
from pipeline.training.row_adam import RowAdam
from pipeline.training.task import Task
from pipeline.workflow.params import Precision, Schedule

Record = Callable[[int, tuple[str, ...], Sequence[float]], None]  # (step, names, values)
LOSS_STEPS = 20  # a recorded training loss is the mean over this many steps


class Diverged(ValueError):
    """A training whose numbers are no longer finite; nothing that it goes on to compute would mean anything."""


def nowhere(step: int, names: tuple[str, ...], values: Sequence[float]) -> None:
    """A `Record` that records nothing."""


class LitWeights(pl.LightningModule):
    """Trains the weights of a model, measures it on ``val`` after every epoch, and keeps the weights of the best epoch.

    Optimisation is manual, because tables and dense weights have different optimizers. The module counts its own steps,
    because Lightning's ``global_step`` counts the steps of every optimizer.

    Training ends with `Diverged` if a loss, or a prediction on ``val``, is not finite. Losses are looked at only where
    they are read anyway, every `LOSS_STEPS` steps and after an epoch, so that no step waits for the device.

    Args:
        model: takes ids (B, S).
        task: defines the loss and the metrics that judge an epoch.
        validation: rows of the part ``val``.
        planned: planned number of weight steps.
        lr: of RowAdam for tables and of Adam for the rest, at the first step.
        adagrad: learning rate of RowAdagrad, at the first step, which then trains the tables instead of RowAdam; None
            for RowAdam. With it, ``weight_decay`` must be 0.
        weight_decay: L2 coefficient of the table rows in a batch, see `RowAdam`, and of every `Memory`, which a batch
            looks up almost completely.
        patience: training stops after this many epochs without a better objective; None for never.
        schedule: "constant": learning rates stay. "linear": they fall linearly, from those at the first step to 0 after
            the last planned one, also if training stops before that.
        record: receives (step, names, values).
        lr_key: where params.yaml holds ``lr``, for messages.
        cuda_graph: whether steps are replayed as CUDA graphs if there is a GPU, see `fix`.
        precision: of the backbone's matrix products in training: 32, or "bf16" for bfloat16, see
            `pipeline.models.precision`.
    """

    keeps_best = True

    def __init__(
        self,
        model: AnyModel,
        task: Task,
        validation: Split,
        planned: int,
        *,
        lr: float = 0.001,
        adagrad: float | None = None,
        weight_decay: float = 0.0,
        patience: int | None = None,
        schedule: Schedule = "constant",
        record: Record = nowhere,
        lr_key: str = "lr",
        cuda_graph: bool = False,
        precision: Precision = 32,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model, self.task, self.validation, self.planned = model, task, validation, planned
        self.lr, self.weight_decay, self.patience, self.record = lr, weight_decay, patience, record
        self.adagrad, self.schedule, self.lr_key, self.cuda_graph = adagrad, schedule, lr_key, cuda_graph
        model.mixed = precision == "bf16"
        self.fixed = False
        self.steps = 0
        self.share: Share | None = None
        self.history: list[dict[str, float]] = []  # of every epoch: step, and the task's metrics on val
        self.best: dict[str, Tensor] = {}
        self._losses: list[Tensor] = []
        self._replay: Replay | None = None
        self._rng: list[Tensor] = []  # states of the CPU and of each GPU

    def weights(self) -> list[nn.Parameter]:
        """All parameters except those of the architecture."""
        arch = {id(p) for p in self.model.embedding.arch_parameters()}
        return [p for p in self.model.parameters() if id(p) not in arch]

    def divide(self, share: Share, smallest: int) -> None:
        """Train together with other processes; see `pipeline.data.share`.

        Args:
            share: of this process.
            smallest: rows of the smallest batch.

        Raises:
            ValueError: if this training cannot be divided.
        """
        embedding = self.model.embedding
        if isinstance(self.model, Retriever):
            raise ValueError(
                f"task {self.task.name} compares the rows of a batch with each other, so {share.number} processes "
                "cannot share a batch; train with one process"
            )
        if not embedding.divisible:
            raise ValueError(
                f"{type(embedding).__name__} learns from the gradients of all rows of a batch, so {share.number} "
                "processes cannot share a batch; train with one process"
            )
        if min(smallest, len(self.validation)) < share.number:
            raise ValueError(
                f"every process must have a row of each batch and of val, and there are {smallest:,} and "
                f"{len(self.validation):,} rows for {share.number} processes; raise the batch size, or start fewer"
            )
        divide(self.model.modules(), share)
        self.share = share

    def fix(self) -> None:
        """Give all steps the same shapes, so that a GPU replays them; see `pipeline.training.replay`. Their results are
        the same up to rounding.

        Raises:
            ValueError: if this training cannot be replayed.
        """
        key = self.lr_key.replace("lr", "cuda_graph")
        if isinstance(self.model, Retriever):
            raise ValueError(f"{key} is true, and task {self.task.name} has batches of many shapes; set it to false")
        if not self.model.embedding.replayable:
            name = type(self.model.embedding).__name__
            raise ValueError(f"{key} is true, and the shapes in {name} depend on the batch; set {key} to false")
        if self.share is not None:
            raise ValueError(f"{key} is true, and {self.share.number} processes share a batch; set it to false")
        if self.adagrad is not None:
            raise ValueError(f"{key} is true, and steps of Adagrad are not replayed; set it to false")
        self.model.fix()
        self.fixed = True

    def _partial(self) -> list[nn.Parameter]:
        """The weights whose gradients are those of the own rows, before they are added up: of the backbone's layers.
        Those of tables and of the embedding are whole, because they come through `pipeline.embeddings.batch.spread`."""
        tables = {id(m.weight) for m in self.model.modules() if isinstance(m, Table)}
        return [p for p in self.model.get_submodule("backbone").parameters() if id(p) not in tables]

    def gradient(self, outputs: Tensor, inputs: Sequence[Tensor], *, allow_unused: bool = False) -> tuple[Tensor, ...]:
        """The gradients of a whole batch's `loss`, as `torch.autograd.grad` returns them."""
        gradients = torch.autograd.grad(outputs, inputs, allow_unused=allow_unused)
        if self.share is not None:
            partial = {id(p) for p in self._partial()}
            pairs = zip(inputs, gradients, strict=True)
            self.share.sum_gradients([g for p, g in pairs if g is not None and id(p) in partial])
        return gradients

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        tables = [m.weight for m in self.model.modules() if isinstance(m, Table)]
        ids = {id(p) for p in tables}
        shared = {id(m.weight) for m in self.model.modules() if isinstance(m, Memory)}
        dense = [p for p in self.weights() if id(p) not in ids | shared]
        memories = [p for p in self.weights() if id(p) in shared]
        groups: list[dict[str, Any]] = [{"params": dense}]
        if memories:
            groups.append({"params": memories, "weight_decay": self.weight_decay})
        lr = torch.tensor(self.lr) if self.fixed else self.lr
        adam: torch.optim.Optimizer = torch.optim.Adam(groups, lr=lr, fused=True, capturable=self.fixed)
        if not tables:
            return [adam]
        if self.adagrad is not None:
            return [RowAdagrad(tables, lr=self.adagrad), adam]
        return [RowAdam(tables, lr=lr, weight_decay=self.weight_decay, fixed=self.fixed), adam]

    def _set_rates(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Give the optimizers the learning rates of the next step."""
        if self.schedule == "constant" and not self.fixed:
            return
        for optimizer in optimizers:
            of_tables = self.adagrad if isinstance(optimizer, RowAdagrad) else None
            rate = (self.lr if of_tables is None else of_tables) * self.factor()
            for group in optimizer.param_groups:
                if not self.fixed:
                    group["lr"] = rate
                elif isinstance(group["lr"], Tensor) and group["lr"].device == self.device:
                    group["lr"].fill_(rate)
                else:  # also after a checkpoint of a training that was not fixed
                    group["lr"] = torch.tensor(rate, device=self.device)
                    if "capturable" in group:  # not of `RowAdam`, whose number of steps would become a float32
                        group["capturable"] = True

    def loss(self, batch: Batch, part: str) -> Tensor:
        """The loss to minimise on a batch of ``part``, a scalar; see `FieldEmbedding.objective`."""
        if self.share is None:
            loss = self.task.loss(self.model, batch)
        else:
            loss = self.share.mean(self.task.loss(self.model, self.share.own(batch)))
        return self.model.embedding.objective(loss, part)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        self.weight_step(batch, self.trainer.optimizers)

    def weight_step(self, batch: Batch, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """One step of all optimizers on one batch."""
        self.model.embedding.before_step(self.steps, self.planned)
        self._set_rates(optimizers)
        if self.fixed and self.on_gpu:
            self._replay = self._replay or Replay(lambda batch: self._update(batch, optimizers))
            loss = self._replay(batch, self.model.embedding.warming())
        else:
            loss = self._update(batch, optimizers)
        self.steps += 1
        self._losses.append(loss)
        if len(self._losses) >= LOSS_STEPS:
            self.record(self.steps, ("train/loss",), (self._mean_loss(),))
            self._losses.clear()

    def _update(self, batch: Batch, optimizers: Sequence[torch.optim.Optimizer]) -> Tensor:
        """Move the weights; the loss before, without gradients."""
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        for parameter in self.model.embedding.arch_parameters():
            parameter.grad = None  # of a step of the architecture; a graph would go on adding to its memory
        loss = self.loss(batch, "train")
        loss.backward()
        if self.share is not None:
            self.share.sum_gradients([p.grad for p in self._partial() if p.grad is not None])
        for optimizer in optimizers:
            optimizer.step()
        return loss.detach()

    def factor(self) -> float:
        """Of the learning rates in this step."""
        return 1 - self.steps / self.planned if self.schedule == "linear" else 1.0

    def _mean_loss(self) -> float:
        """The mean of the latest losses.

        Raises:
            Diverged: if one of them is not finite.
        """
        losses = torch.stack(self._losses)
        mean = float(losses.mean())
        if not math.isfinite(mean):
            values = losses.tolist()
            first = next((i for i, value in enumerate(values) if not math.isfinite(value)), len(values) - 1)
            raise self._diverged(f"the loss is {values[first]:g}", self.steps - len(values) + first + 1)
        return mean

    def _diverged(self, what: str, step: int) -> Diverged:
        return Diverged(
            f"{what} in epoch {len(self.history) + 1}, step {step:,}, so the training has diverged; lower the learning "
            f"rate: {self.rates()}"
        )

    def rates(self) -> str:
        """The learning rates, for messages."""
        of_tables = "" if self.adagrad is None else f" and retrain.adagrad is {self.adagrad:g}"
        return f"{self.lr_key} is {self.lr:g}{of_tables}"

    def best_epoch(self) -> int:
        """Number of the first epoch with the highest objective on ``val``."""
        return max(range(len(self.history)), key=lambda epoch: self.history[epoch][self.task.objective])

    def on_train_epoch_end(self) -> None:
        if self._losses:
            self._mean_loss()
        try:
            predictions = self._predicted()
        except NotFinite as error:
            raise self._diverged("a score on val is not finite", self.steps) from error
        if not np.isfinite(predictions).all():
            raise self._diverged("a prediction on val is not finite", self.steps)
        metrics = self.task.measure(predictions, self.validation)
        self.history.append({"step": self.steps, **metrics})
        self.record(self.steps, tuple(f"val/{name}" for name in metrics), list(metrics.values()))
        if (watched := getattr(self.model.backbone, "watched", None)) is not None and (numbers := watched()):
            self.record(self.steps, tuple(f"backbone/{name}" for name in numbers), list(numbers.values()))
        best = self.best_epoch()
        if self.keeps_best and best == len(self.history) - 1:
            self.keep_best()
        if self.patience is not None and len(self.history) - 1 - best >= self.patience:
            self.trainer.should_stop = True

    def keep_best(self) -> None:
        """Keep the weights of this epoch, for `trained`."""
        self.best = {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def trained(self) -> AnyModel:
        """The model with the weights of its best epoch, after the training."""
        self.model.load_state_dict(self.best)
        return self.model

    def _predicted(self) -> np.ndarray:
        """The predictions for ``val``; each process makes those of its share of the rows."""
        if self.share is None:
            return self.task.predict(self.model, self.validation)
        rows = self.share.rows(len(self.validation))
        own = self.predict(rows)
        whole = np.zeros((len(self.validation), *own.shape[1:]), own.dtype)
        whole[rows] = own
        return self.share.sum(torch.from_numpy(whole).to(self.device)).cpu().numpy()

    def predict(self, rows: slice) -> np.ndarray:
        """The predictions for some rows of ``val``."""
        return self.task.predict(self.model, self.validation.between(rows.start, rows.stop))

    def save(self, checkpoint: Path, due: bool) -> bool:
        """Write a checkpoint, whole or not at all, if it is due; whether it was.

        Args:
            checkpoint: the file.
            due: whether the last one is long ago; always False in other processes than the first.
        """
        if due:
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
            draft = checkpoint.with_suffix(f".{os.getpid()}")
            self.trainer.save_checkpoint(draft)
            draft.replace(checkpoint)
        return due

    def resumes(self, checkpoint: Path) -> bool:
        """Whether there is a checkpoint from which this training can go on; one that is damaged is removed.

        Raises:
            ValueError: if it is of other processes.
        """
        return is_sound(checkpoint)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["training"] = {
            "steps": self.steps,
            "history": self.history,
            "best": self.best,
            "losses": self._losses,
            "rng": [torch.get_rng_state(), *([torch.cuda.get_rng_state(self.device)] if self.on_gpu else [])],
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["training"]
        self.steps, self.history, self.best = state["steps"], state["history"], state["best"]
        self._losses, self._rng = state["losses"], state["rng"]

    def on_train_start(self) -> None:
        self._losses = [loss.to(self.device) for loss in self._losses]  # a checkpoint loads them on the CPU
        if self._rng:  # Lightning does not restore the random state, on which dropout and Gumbel noise depend
            torch.set_rng_state(self._rng[0])
            if self.on_gpu and len(self._rng) > 1:
                torch.cuda.set_rng_state(self._rng[1], self.device)
            self._rng = []
        if self.share is not None:
            self._check_alike(self.share)

    def _check_alike(self, share: Share) -> None:
        """Raise a `ValueError` if the processes do not start from the same checkpoint or the same weights."""
        weights = sum(float(p.detach().sum(dtype=torch.float64)) for p in self.model.parameters())
        drawn = float(torch.get_rng_state().double().sum())
        every = share.gathered(torch.tensor([self.steps, drawn, weights], dtype=torch.float64, device=self.device))
        if not torch.allclose(every, every[:1], rtol=1e-6, atol=0):
            raise ValueError(
                f"the processes of this training do not start alike: their steps are {every[:, 0].long().tolist()}, "
                "and perhaps their weights differ; give all of them the same code, parameters and folder"
            )

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def progress(self) -> dict[str, str]:
        """The values that the progress bar shows besides the speed."""
        if not self.history:
            return {}
        return {f"val {self.task.title}": f"{self.history[-1][self.task.objective]:.4f}"}
