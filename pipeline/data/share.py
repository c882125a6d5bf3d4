"""The share of one process in a training on several: its rows of each batch, and sums over all processes.

Every process holds the whole model and takes the same steps with the same random numbers. Only the backbone is divided:
each process computes it for its own rows of the batch. The embedding looks up the distinct rows of the whole batch, as
in one process, so what it draws, counts or normalises is the same. What crosses between processes is what differs:

* the gradients in the vectors of the distinct rows (U, D), not in whole tables (`pipeline.embeddings.batch.spread`);
* the gradients of the backbone's dense weights (`Share.sum_gradients`);
* the moments of each BatchNorm (`pipeline.models.layers.BatchNorm`), and the loss.

So a step is that of one process with the same batch, up to the order in which float sums are added up.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.autograd.function import FunctionCtx

from pipeline.data.batches import Batch

LOST = "another process of this training has ended; the same command goes on from the last checkpoint"


class Share:
    """One of ``number`` processes; the process group must have been initialised.

    Args:
        rank: of this process, from 0.
        number: of processes.

    Attributes:
        ids: (B, S) of the whole batch that the model is computing; set by `own`.
    """

    def __init__(self, rank: int, number: int) -> None:
        self.rank, self.number = rank, number
        self.ids = torch.empty(0, 0)

    def rows(self, total: int, rank: int | None = None) -> slice:
        """The rows of a process, by default this one, among ``total`` rows; shares differ by at most one row."""
        rank = self.rank if rank is None else rank
        return slice(total * rank // self.number, total * (rank + 1) // self.number)

    def counts(self, like: Tensor) -> Tensor:
        """(n, 1) number of rows of every process in the current batch, with the type and device of a tensor."""
        every = [self.rows(len(self.ids), rank) for rank in range(self.number)]
        return like.new_tensor([[rows.stop - rows.start] for rows in every])

    def own(self, batch: Batch) -> Batch:
        """The rows of this process in a whole batch, which becomes the current one."""
        self.ids = batch.ids
        rows = self.rows(len(batch.ids))
        return Batch(batch.ids[rows], batch.labels[rows])

    def sum(self, values: Tensor) -> Tensor:
        """Replace a contiguous tensor by its sum over all processes; all of them must call this.

        Raises:
            ConnectionError: if another process has ended.
        """
        try:
            distributed.all_reduce(values)
        except RuntimeError as error:
            raise ConnectionError(LOST) from error
        return values

    def gathered(self, values: Tensor) -> Tensor:
        """(n, ...) the values (...) of every process, in the order of ranks."""
        every = values.new_zeros(self.number, *values.shape)
        every[self.rank] = values
        return self.sum(every)

    def mean(self, loss: Tensor) -> Tensor:
        """The mean over the rows of the current batch, from the mean over the own rows; scalars.

        Its gradient reaches the own rows only. Gradients are complete after `spread` and `sum_gradients`.
        """
        rows = self.rows(len(self.ids))
        return _Sum.apply(loss * ((rows.stop - rows.start) / len(self.ids)), self)  # type: ignore[no-any-return]

    def sum_gradients(self, gradients: Sequence[Tensor]) -> None:
        """Replace dense gradients by their sums over all processes, in one exchange."""
        if gradients:
            together = self.sum(torch.cat([gradient.flatten() for gradient in gradients]))
            for gradient, whole in zip(gradients, together.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(whole.view_as(gradient))


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, value: Tensor, share: Share) -> Tensor:
        return share.sum(value.clone())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad, None


class Divided:
    """A module that knows of the whole batch in training, while its input has the rows of this process only.

    Attributes:
        share: of this process; None if there is one process.
    """

    share: Share | None = None


def divide(modules: Iterable[nn.Module], share: Share) -> None:
    """Give the modules that need it their share.

    Raises:
        ValueError: naming a layer that would mix or drop the rows of one process as if they were the whole batch.
    """
    for module in modules:
        if isinstance(module, Divided):
            module.share = share
        elif isinstance(module, nn.modules.batchnorm._NormBase | nn.modules.dropout._DropoutNd):
            raise ValueError(
                f"layer {type(module).__name__} of torch does not know of the rows of other processes; use BatchNorm "
                "and Dropout of pipeline.models.layers in this backbone, or train it with one process"
            )
