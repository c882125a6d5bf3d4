"""The contract of every embedding with models, with searches and with serving."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.embeddings.batch import Occurrences, spread


@dataclass(frozen=True)
class Findings:
    """What a search knows about the architecture at a step.

    Args:
        scores: (F, N) log-probabilities of the candidates; None if candidates are not scored.
        watched: numbers to record with every step of the architecture, e.g. a temperature ``tau``.
        arrays: called once, at the end of the search; returns the arrays that the method's ``derive`` needs besides the
            scores, e.g. the importance of every cell.
    """

    scores: Tensor | None = None
    watched: Mapping[str, float] = field(default_factory=dict)
    arrays: Callable[[], dict[str, np.ndarray]] = dict


class Calibration(Protocol):
    """What a trained model and the training rows say about the embedding; the model is in evaluation mode."""

    def rows(self) -> int:
        """The number of training rows."""

    def weights(self) -> Tensor:
        """(R,) for each row of the joint table of the kept fields, the mean over the training rows of its squared
        weight in its bag. For a single-valued field, that is the share of training rows that look it up."""

    def metrics(self) -> Tensor:
        """(F, W, W) float64, the Gauss-Newton matrix of each field: the mean, over training rows, of the outer products
        of the gradients of `pipeline.training.task.Task.probe` in the vectors of the field, W numbers each."""


def outer_products(gradients: Iterator[Tensor]) -> Tensor:
    """Gradients (B, F, W), batch by batch -> (F, W, W) float64, the mean of their outer products over all rows."""
    total, rows = torch.zeros(()), 0
    for gradient in gradients:
        total = total + torch.einsum("bfi,bfj->fij", gradient, gradient).double().cpu()
        rows += len(gradient)
    return total / rows


class Judge(Calibration, Protocol):
    """Evaluates the trained supernet on the rows of ``arch``, with its embedding in its current state."""

    def losses(self) -> Iterator[Tensor]:
        """The mean loss of each batch of ``arch``, in order, in evaluation mode, with gradients."""

    def objective(self, batches: int | None = None) -> float:
        """The task's first metric on the first ``batches`` batches of ``arch``, or on all if None; more is better."""


class FieldEmbedding(nn.Module):
    """Occurrences of a batch -> embedded (B, F, D); (B, F, D + 1) with first-order weights, see `take_first_order`.

    A subclass defines `vectors` and `packed`. All other methods are hooks, and their defaults suit a plain table. After
    `finish`, in evaluation mode, ``forward`` returns the served vectors.

    Attributes:
        dim: D, the width of the vectors that the backbone takes.
        keeps_best: whether a search ends with the weights of its best epoch on ``val`` instead of its last.
        divisible: whether several processes can share a batch in training. Each calls `vectors` for the whole batch,
            and ``forward`` returns its own rows. False if ``forward`` does more with the gradients of its output than
            add them up.
        replayable: whether a training step can be replayed as a CUDA graph: with `Occurrences.segments`, nothing in it
            has a shape or a number that depends on the batch, but in tensors.
    """

    dim: int
    keeps_best = False
    divisible = True
    replayable = False

    def vectors(self, occ: Occurrences) -> Tensor:
        """(U, D) vectors of the distinct rows of the batch."""
        raise NotImplementedError(f"{type(self).__name__} must define vectors(occ)")

    def forward(self, occ: Occurrences) -> Tensor:
        """Occurrences -> (B, F, D)."""
        return spread(self.vectors(occ), occ)

    # In a search

    def take_first_order(self, wanted: bool) -> bool:
        """Called before training.

        Args:
            wanted: whether the backbone has a first-order weight for each row.

        Returns:
            Whether the embedding holds these weights. If so, `vectors` returns (U, D + 1), with the weights last, and
            the backbone has no table of its own for them.

        Raises:
            ValueError: if the embedding was made for another kind of backbone.
        """
        return False

    def arch_parameters(self) -> list[nn.Parameter]:
        """The parameters that decide the architecture; none if the embedding is not searched."""
        return []

    def before_step(self, step: int, planned: int) -> None:
        """Called before every weight step.

        Args:
            step: number of finished weight steps.
            planned: number of weight steps in the whole search.
        """

    def warming(self) -> bool:
        """Whether the warm-up is on: the architecture takes no steps, and its trajectory is not recorded."""
        return False

    def objective(self, loss: Tensor, part: str) -> Tensor:
        """The loss to minimise on a batch.

        Args:
            loss: of the task on this batch.
            part: of the batch, "train" or "arch".
        """
        return loss

    def conclude(self, judge: Judge) -> None:
        """Called after the last step of a search, to examine the trained supernet, e.g. by the gradients of gates."""

    def findings(self) -> Findings:
        """The findings of the search so far."""
        return Findings()

    # In a model that is served

    def trains_as(self) -> str | None:
        """A text that names the training: embeddings of the same schema and dim that return the same text are trained
        alike until `calibrate`, to the bit, so a study trains one of them for all. None: no other is trained alike."""
        return None

    def calibrate(self, calibration: Calibration) -> None:
        """Called once after training and before `finish`, for what that has to know of the data."""

    def finish(self) -> None:
        """Called after training, with the best weights loaded, e.g. to prune, to round or to assign codes."""

    def packed(self) -> dict[str, Tensor]:
        """The tensors that serve this embedding. Keys are ``kind`` or ``kind.detail``.

        Before training, e.g. on the ``meta`` device, they have the same sizes as after `finish`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define packed()")

    def lookup(self, packed: Mapping[str, Tensor], occ: Occurrences) -> Tensor:
        """The vectors (U, D) of the distinct rows, computed only from ``packed``.

        Defined only by embeddings whose `packed` returns other tensors than their parameters and buffers. These claim
        fewer bytes than their parameters take, and this method proves that the packed tensors suffice.
        """
        raise NotImplementedError(f"{type(self).__name__} packs its own tensors; forward(occ) looks them up")
