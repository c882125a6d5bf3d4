"""The Lightning module that trains weights and an architecture."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pipeline.data.batches import Batches
from pipeline.data.split import Split
from pipeline.models.model import CTRModel
from pipeline.training.bilevel import architecture_gradient, frozen_statistics
from pipeline.training.weights import LitCTR


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
