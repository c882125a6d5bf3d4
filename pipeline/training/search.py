"""The Lightning module that trains the weights and the architecture of a supernet."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.data.batches import Batch, Batches
from pipeline.data.split import Split
from pipeline.embeddings.contract import Judge
from pipeline.models.retriever import AnyModel, Retriever
from pipeline.training.ahead import Ahead
from pipeline.training.bilevel import architecture_gradient, frozen_statistics
from pipeline.training.calibration import Calibrated, CalibratedRetriever
from pipeline.training.replay import Replay
from pipeline.training.task import Task
from pipeline.training.weights import LitWeights
from pipeline.workflow.params import Architecture


class LitSearch(LitWeights):
    """Bilevel training of a supernet: weights on ``train``, architecture on ``arch``. Zhao et al. 2021, alg. 1.

    Args:
        model, task, validation, planned: see `LitWeights`.
        arch: endless batches of the part ``arch``.
        architecture: how the architecture is trained.
        names: of the F fields, for records.
        candidates: for each field its candidate dims.
        prices: (F, N) bytes of each candidate; values beyond a field's last candidate are ignored.
        options: see `LitWeights`.
    """

    def __init__(
        self,
        model: AnyModel,
        task: Task,
        validation: Split,
        planned: int,
        arch: Batches,
        architecture: Architecture,
        names: Sequence[str],
        candidates: Sequence[Sequence[int]],
        prices: np.ndarray,
        **options: Any,
    ) -> None:
        super().__init__(model, task, validation, planned, **options)
        self.keeps_best = model.embedding.keeps_best
        self.arch, self.architecture = arch, architecture
        most = max(map(len, candidates))
        self.offered = np.array([[n < len(row) for n in range(most)] for row in candidates])
        self.dims = np.array([[*row, *[0] * (most - len(row))] for row in candidates])
        self.prices = np.where(self.offered, prices, 0)
        self._arch_fed: Batches | Ahead = arch
        self._arch_replay: Replay | None = None
        self.trajectory: list[tuple[int, float, Tensor]] = []  # step, tau, probabilities (F, N)
        self.arch_steps = self.stable = 0
        self.choice: list[int] = []
        self.expected_bytes = math.nan
        self._names = (
            *(f"p/{name}/{d}" for name, row in zip(names, candidates, strict=True) for d in row),
            *(f"expected_dim/{name}" for name in names),
            *("entropy", "expected_bytes"),
        )

    def fix(self) -> None:
        super().fix()
        if self.architecture.order == 2 or self.architecture.level == "single":
            raise ValueError(
                "search.cuda_graph is true, and only a search with search.architecture.order 1 and level bilevel can "
                f"be replayed, got order {self.architecture.order} and level {self.architecture.level}; set it to false"
            )

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        self._arch_optimizer = None
        if not self.model.embedding.arch_parameters():
            return super().configure_optimizers()
        arch = torch.optim.Adam(
            self.model.embedding.arch_parameters(),
            lr=self.architecture.lr,
            fused=True if self.fixed else None,
            capturable=self.fixed,
        )
        if self.architecture.level == "single":
            return [*super().configure_optimizers(), arch]
        self._arch_optimizer = arch
        return super().configure_optimizers()

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        super().training_step(batch, batch_idx)
        if self.model.embedding.warming():
            return
        if self._arch_optimizer is None:
            self._observe()
        elif self.steps % self.architecture.every == 0:
            self.arch_step(batch)
            self._observe()

    def arch_step(self, batch: Batch) -> None:
        """One step of the architecture on the next batch of ``arch``.

        Args:
            batch: of training rows, for the second order.
        """
        arch_batch = self.transfer_batch_to_device(self._arch_fed.take(), self.device, 0)
        if self.fixed and self.on_gpu:
            self._arch_replay = self._arch_replay or Replay(self._update_arch)
            self._arch_replay(arch_batch)
        else:
            self._update_arch(arch_batch, batch)

    def _update_arch(self, arch_batch: Batch, batch: Batch | None = None) -> Tensor:
        """Move the architecture by batches of ``arch`` and, for the second order, of ``train``; the loss before."""
        assert self._arch_optimizer is not None and (batch is not None or self.architecture.order == 1)
        losses: list[Tensor] = []

        def loss() -> Tensor:
            losses.append(self.loss(arch_batch, "arch"))
            return losses[0]

        with frozen_statistics(self.model):
            architecture_gradient(
                loss,
                lambda: self.loss(batch, "train"),  # type: ignore[arg-type]
                self.model.embedding.arch_parameters(),
                self.weights(),
                xi=self.lr if self.architecture.order == 2 else 0.0,
                gradient=self.gradient,
            )
        self._arch_optimizer.step()
        return losses[0]

    def judge(self, training: Split) -> Judge:
        """The judge for `FieldEmbedding.conclude`, after the last step.

        Args:
            training: all rows of ``train`` and ``arch``.
        """
        return _RetrieverJudge(self, training) if isinstance(self.model, Retriever) else _Judge(self, training)

    @torch.no_grad()
    def _observe(self) -> None:
        """Record a point of the trajectory, and end the search if all choices have been stable for long enough."""
        self.arch_steps += 1
        due = (self.arch_steps - 1) % self.architecture.trajectory_every == 0
        findings = self.model.embedding.findings()
        scores, watched = findings.scores, findings.watched
        if due and watched:
            self.record(self.steps, tuple(watched), list(watched.values()))
        if scores is None:
            return
        p = scores.exp().cpu()
        expected = (p.numpy() * self.dims).sum(1)
        self.expected_bytes = float((p.numpy() * self.prices).sum())
        if due:
            self.trajectory.append((self.steps, watched.get("tau", math.nan), p))
            entropy = float(torch.special.entr(p).sum(1).mean())
            values = [*p.numpy()[self.offered].tolist(), *expected.tolist(), entropy, self.expected_bytes]
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
            "arch": self._arch_fed.state_dict(),
            "optimizer": self._arch_optimizer.state_dict() if self._arch_optimizer else None,
            "trajectory": self.trajectory,
            "counts": (self.arch_steps, self.stable, self.choice),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        state = checkpoint["search"]
        self._arch_fed.load_state_dict(state["arch"])
        self.trajectory = state["trajectory"]
        self.arch_steps, self.stable, self.choice = state["counts"]
        self._arch_state = state["optimizer"]

    def on_train_start(self) -> None:
        super().on_train_start()
        if self.on_gpu and self._arch_optimizer is not None:
            self._arch_fed = Ahead(self.arch, self.device)
        if self._arch_optimizer is not None and getattr(self, "_arch_state", None) is not None:
            self._arch_optimizer.load_state_dict(self._arch_state)
            self._arch_state = None
            if self.fixed:  # also after a checkpoint of a search that was not fixed
                self._arch_optimizer.param_groups[0].update(fused=True, capturable=True)

    def rates(self) -> str:
        if not self.model.embedding.arch_parameters():
            return super().rates()
        return f"{super().rates()}, search.architecture.lr is {self.architecture.lr:g}"

    def progress(self) -> dict[str, str]:
        if not self.model.embedding.arch_parameters():
            return super().progress()
        if math.isnan(self.expected_bytes):
            return super().progress() | {"expected MB": "warm-up"}
        return super().progress() | {"expected MB": f"{self.expected_bytes / 1e6:.3g}"}


class _Judging:
    """What a judge adds to a calibration; see `pipeline.embeddings.contract.Judge`."""

    def __init__(self, search: LitSearch, training: Split) -> None:
        super().__init__(search.task, search.model, training)  # type: ignore[call-arg]
        self._search = search
        self._split = search.arch.split

    def losses(self) -> Iterator[Tensor]:
        search = self._search
        batches = search.task.batches(self._split, -(-len(self._split) // len(search.arch)))
        search.model.eval()
        for batch in batches:
            yield search.task.loss(search.model, search.transfer_batch_to_device(batch, search.device, 0))

    def objective(self, batches: int | None = None) -> float:
        search = self._search
        rows = search.arch.bounds[: None if batches is None else batches + 1][-1]
        split = self._split.head(rows)
        search.model.eval()
        return search.task.measure(search.task.predict(search.model, split), split)[search.task.objective]


class _Judge(_Judging, Calibrated):
    """The judge of a model of rows with labels."""


class _RetrieverJudge(_Judging, CalibratedRetriever):
    """The judge of a retriever."""


def margins(p: Tensor) -> Tensor:
    """(F, N) probabilities -> (F,) lead of the most probable candidate over the second; 1 for a single candidate."""
    top = p.topk(min(2, p.shape[1]), dim=1).values
    return top[:, 0] - top[:, 1] if top.shape[1] > 1 else torch.ones(len(p))
