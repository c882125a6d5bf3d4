"""What a model of one's own and its training data say about the tables in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.compress.effect import Losses
from pipeline.embeddings.batch import Occurrences
from pipeline.embeddings.contract import outer_products
from pipeline.models.model import Model


class OwnCalibration:
    """See `pipeline.embeddings.contract.Calibration`; losses stand in for the probe of a task.

    Args:
        tables: the part of the model to ask about.
        model: trained, with the tables in it.
        batches: of training data.
        losses: ``losses(model, batch)`` returns the loss of each row, (B,).

    Raises:
        ValueError: if the batches are empty or can be read only once, if the losses have another shape, or if they do
            not depend on the tables.
    """

    def __init__(self, tables: Model, model: nn.Module, batches: Iterable[Any], losses: Losses) -> None:
        if isinstance(batches, Iterator):
            raise ValueError(
                f"batches are read twice, but a {type(batches).__name__} can be read only once; give a list or a loader"
            )
        self.tables, self.model, self.batches, self.losses = tables, model, batches, losses
        self._rows = 0
        device = next(tables.parameters()).device
        total = torch.zeros(tables.kept.num_rows, dtype=torch.float64, device=device)
        with torch.no_grad():
            for rows, lookups in self._passes():
                self._rows += rows
                for occ, _ in lookups:
                    shares = torch.ones(len(occ.inverse), device=device) if occ.weights is None else occ.weights
                    total.index_add_(0, occ.rows[occ.inverse], shares.double().square())
        if not self._rows:
            raise ValueError("there are no batches; give some training data")
        self._weights = (total / self._rows).float()

    def rows(self) -> int:
        return self._rows

    def weights(self) -> Tensor:
        return self._weights

    def metrics(self) -> Tensor:
        return outer_products(self.gradients())

    def gradients(self) -> Iterator[Tensor]:
        """The gradients (B, F, W) of the losses in the output of the tables, batch by batch."""
        with torch.enable_grad():
            for _, lookups in self._passes(backward=True):
                yield from (gradient for _, gradient in lookups)

    def _passes(self, backward: bool = False) -> Iterator[tuple[int, list[tuple[Occurrences, Tensor]]]]:
        """Yields for each batch its number of rows, and for each use of the tables the occurrences and the output, or
        with ``backward`` the gradient of the summed losses in the output."""
        calls: list[tuple[Occurrences, Tensor]] = []

        def keep(module: nn.Module, inputs: tuple[Occurrences], output: Tensor) -> None:
            calls.append((inputs[0], output))

        training = self.model.training
        self.model.eval()
        hook = self.tables.embedding.register_forward_hook(keep)
        try:
            for batch in self.batches:
                calls.clear()
                losses = self.losses(self.model, batch)
                if losses.dim() != 1:
                    raise ValueError(
                        f"losses must return the loss of each row, (B,), got the shape {tuple(losses.shape)}"
                    )
                if not calls:
                    raise ValueError("losses(model, batch) does not call these tables; give the model that holds them")
                if backward:
                    outputs = [output for _, output in calls]
                    gradients = torch.autograd.grad(losses.sum(), outputs, materialize_grads=True)
                    yield len(losses), [(occ, grad) for (occ, _), grad in zip(calls, gradients, strict=True)]
                else:
                    yield len(losses), list(calls)
        finally:
            hook.remove()
            self.model.train(training)
