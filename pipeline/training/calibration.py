"""What a trained model and the training rows say about the embedding, for methods that code it after training."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.data.batches import Batches
from pipeline.data.split import Split
from pipeline.embeddings.batch import Occurrences
from pipeline.embeddings.contract import Calibration, outer_products
from pipeline.models.model import Model
from pipeline.models.retriever import AnyModel, Retriever
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

    def metrics(self) -> Tensor:
        return outer_products(gradient for _, gradient, _ in passes(self.task, self.model, self.split))

    @torch.no_grad()
    def weights(self) -> Tensor:
        device = _device(self.model)
        total = torch.zeros(self.model.kept.num_rows, dtype=torch.float64, device=device)
        for batch in Batches(self.split, BATCH):
            occ = self.model.occurrences(batch.ids.to(device))
            shares = torch.ones(len(occ.inverse), device=device) if occ.weights is None else occ.weights
            total.index_add_(0, occ.rows[occ.inverse], shares.double().square())
        return (total / len(self.split)).float()


class CalibratedRetriever:
    """The calibration of a retriever, where several rows of a batch share the vector of a user or an item.

    The probe of such a task has a random sign for each row. So the outer product of the gradient in a shared vector is,
    in the mean, the sum of the outer products of the rows. How much a row of a table matters differs more than how
    often it is looked up; a graph looks up every row each time. So the weights are shares of the squared gradients.
    """

    def __init__(self, task: Task, model: Retriever, split: Split) -> None:
        self.task, self.model, self.split = task, model, split

    def rows(self) -> int:
        return len(self.split)

    def metrics(self) -> Tensor:
        return self._moments[0]

    def weights(self) -> Tensor:
        return self._moments[1]

    @cached_property
    def _moments(self) -> tuple[Tensor, Tensor]:
        kept, device = self.model.kept, _device(self.model)
        fields = len(kept)
        width = self.model.embedding.dim
        outer = torch.zeros(fields, width, width, dtype=torch.float64)
        energy = torch.zeros(kept.num_rows, dtype=torch.float64, device=device)
        of_fields = torch.zeros(fields, dtype=torch.float64, device=device)
        rows = 0
        for occ, gradient, number in passes(self.task, self.model, self.split):
            assert occ.fields is not None
            squared = gradient.double().square().sum(1)
            of_fields.index_add_(0, occ.fields, squared)
            of_bags = squared[occ.inverse if occ.bags is None else occ.bags]
            shares = of_bags if occ.weights is None else of_bags * occ.weights.double().square()
            energy.index_add_(0, occ.rows[occ.inverse], shares)
            for f in occ.fields.unique().tolist():
                own = occ.of_field(gradient, f)
                outer[f] += (own.T @ own).double().cpu()
            rows += number
        totals = of_fields.clamp(min=torch.finfo(torch.float64).tiny)
        field_of_row = torch.from_numpy(np.repeat(np.arange(fields), kept.cardinalities)).to(device)
        return outer / rows, (energy / totals[field_of_row]).float()


def calibrated(task: Task, model: AnyModel, split: Split) -> Calibration:
    """The calibration that suits a trained model; see `Calibrated`."""
    if isinstance(model, Retriever):
        return CalibratedRetriever(task, model, split)
    return Calibrated(task, model, split)


def passes(task: Task, model: AnyModel, split: Split) -> Iterator[tuple[Occurrences, Tensor, int]]:
    """For batches of some training rows: the occurrences, the gradient of the probe in the output of the embedding, and
    the number of rows."""
    calls: list[tuple[Occurrences, Tensor]] = []

    def keep(module: nn.Module, inputs: tuple[Occurrences], output: Tensor) -> None:
        calls.append((inputs[0], output))

    some = split.thinned(1 / -(-len(split) // ROWS))
    device, training = _device(model), model.training
    model.eval()
    hook = model.embedding.register_forward_hook(keep)
    try:
        for batch in task.batches(some, BATCH):
            with torch.enable_grad():
                probe = task.probe(model, batch.to(device))
                occ, output = calls.pop()
                (gradient,) = torch.autograd.grad(probe, output)
            yield occ, gradient, len(batch.ids)
    finally:
        hook.remove()
        model.train(training)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
