"""What a trained model and the training rows say about the embedding, for methods that code it after training."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pipeline.data.batches import Batch, Batches
from pipeline.data.split import Split
from pipeline.models.model import Model
from pipeline.training.task import Task

ROWS = 150_000  # of which gradients are taken; they are spread evenly over the training rows
BATCH = 2_000


class Calibrated:
    """See `pipeline.embeddings.contract.Calibration`.

    Args:
        task: defines how sensitive the loss is.
        model: trained.
        split: training rows.
    """

    def __init__(self, task: Task, model: Model, split: Split) -> None:
        self.task, self.model, self.split = task, model, split

    def rows(self) -> int:
        return len(self.split)

    @torch.no_grad()
    def weights(self) -> Tensor:
        device = _device(self.model)
        total = torch.zeros(self.model.kept.num_rows, dtype=torch.float64, device=device)
        for batch in Batches(self.split, BATCH):
            occ = self.model.occurrences(batch.ids.to(device))
            shares = torch.ones(len(occ.inverse), device=device) if occ.weights is None else occ.weights
            total.index_add_(0, occ.rows[occ.inverse], shares.double().square())
        return (total / len(self.split)).float()

    def gradients(self) -> Iterator[Tensor]:
        embedded: list[Tensor] = []

        def keep(module: nn.Module, inputs: object, output: Tensor) -> None:
            embedded.append(output)

        some = self.split.thinned(1 / -(-len(self.split) // ROWS))
        device, training = _device(self.model), self.model.training
        self.model.eval()
        hook = self.model.embedding.register_forward_hook(keep)
        try:
            for batch in Batches(some, BATCH):
                with torch.enable_grad():
                    probe = self.task.probe(self.model, Batch(batch.ids.to(device), batch.labels.to(device)))
                    (gradient,) = torch.autograd.grad(probe, embedded.pop())
                yield gradient
        finally:
            hook.remove()
            self.model.train(training)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
