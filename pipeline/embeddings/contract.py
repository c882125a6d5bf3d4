"""The contract of every embedding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from torch import Tensor, nn

from pipeline.embeddings.batch import Occurrences

Passes = Callable[[], Iterator[tuple[Tensor, Tensor]]]


class FieldEmbedding(nn.Module):
    """The contract of every method: a batch's occurrences -> embedded (B, F, D), and hooks for a plain table.

    What ``forward`` computes in evaluation mode after `finish` is what is served.
    ``dim`` is D, the width that the backbone sees.
    """

    dim: int

    def forward(self, occ: Occurrences) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must define forward(occ)")

    # In a search

    def arch_parameters(self) -> list[nn.Parameter]:
        """Parameters that decide the architecture; none for an embedding that is not searched."""
        return []

    def before_step(self, step: int, planned: int) -> None:
        """Told the number of finished weight steps and the number planned, before every weight step."""

    def objective(self, loss: Tensor, part: str) -> Tensor:
        """The loss to minimise, given the prediction loss on ``part`` ("train" or "arch")."""
        return loss

    def warming(self) -> bool:
        """Whether it is too early for steps of the architecture, and for its trajectory."""
        return False

    def scores(self) -> Tensor | None:
        """(F, N) log-probabilities of the candidates, or None where none are scored."""
        return None

    def watched(self) -> dict[str, float]:
        """What to record with every step of the architecture besides its scores, e.g. a temperature ``tau``."""
        return {}

    def conclude(self, passes: Passes) -> None:
        """Told that the search's last step is done: time to look at the trained supernet, e.g. at gradients of gates.

        Args:
            passes: each call gives the (logits (B,), labels (B,)) of all batches of ``arch``, with gradients, in
                evaluation mode, computed batch by batch from the embedding as it then is.
        """

    def found(self) -> dict[str, np.ndarray]:
        """What the method's ``derive`` needs besides `scores`, e.g. the importance of every cell."""
        return {}

    # In a model that is served

    def finish(self) -> None:
        """Told that training is over and its best weights are in place: prune, round, settle the codes."""

    def packed(self) -> dict[str, Tensor]:
        """What has to be kept to serve this embedding. Keys are ``kind`` or ``kind.detail``.

        On the ``meta`` device, before any training, it has to have the sizes that it has after `finish`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define packed()")

    def lookup(self, packed: Mapping[str, Tensor], occ: Occurrences) -> Tensor:
        """Embedded (B, F, D) from ``packed`` alone, where that is not made of the embedding's own tensors.

        What is packed then claims fewer bytes than the parameters take, and this is the proof that it suffices. An
        embedding that packs its own parameters and buffers needs none.
        """
        raise NotImplementedError(f"{type(self).__name__} packs its own tensors; forward(occ) looks them up")
