"""Layers of the backbones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from pipeline.data.schema import Schema
from pipeline.data.share import Divided, Share
from pipeline.embeddings.batch import Occurrences, spread
from pipeline.embeddings.table import Table
from pipeline.models.dense import Dense
from pipeline.models.factored import Vectors, squares


class FirstOrder(nn.Module):
    """A bias plus one weight per feature id, e.g. the linear term of FM: Occurrences -> (B,).

    Attributes:
        table: the weights; None if the embedding holds them, see `FieldEmbedding.take_first_order`.
    """

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.table: Table | None = Table(schema.num_rows, 1, sd=0.0)
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, occ: Occurrences) -> Tensor:
        if self.table is None:
            assert occ.first_order is not None
            return self.bias + occ.first_order
        return self.bias + spread(self.table(occ.rows), occ).sum((1, 2))


class _SecondOrder(torch.autograd.Function):
    """`second_order` in three passes over (B, F, D), forward and backward; torch operations would need eight."""

    @staticmethod
    def forward(ctx: FunctionCtx, embedded: Tensor) -> Tensor:
        total = embedded.sum(1)  # (B, D)
        ctx.save_for_backward(embedded, total)  # type: ignore[attr-defined]
        return 0.5 * (total.square().sum(1) - squares(embedded.flatten(1)))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        embedded, total = ctx.saved_tensors
        return (total[:, None] - embedded).mul_(grad.view(len(grad), 1, -1))


class _BiInteraction(_SecondOrder):
    @staticmethod
    def forward(ctx: FunctionCtx, embedded: Tensor) -> Tensor:
        total = embedded.sum(1)
        ctx.save_for_backward(embedded, total)  # type: ignore[attr-defined]
        return 0.5 * (total.square() - embedded.square().sum(1))


def second_order(embedded: Tensor | Vectors) -> Tensor:
    """Sum of the inner products of all pairs of fields: (B, F, D) -> (B,).

    Rendle 2010, eq. 5: half of (square of the sum minus sum of the squares).
    """
    if isinstance(embedded, Vectors):
        total = embedded.total()
        return 0.5 * (torch.linalg.vecdot(total, total) - embedded.squares())
    return _SecondOrder.apply(embedded)  # type: ignore[no-any-return]


def bi_interaction(embedded: Tensor) -> Tensor:
    """Sum of the elementwise products of all pairs of fields: (B, F, D) -> (B, D). `second_order` is its sum over D.

    He & Chua 2017, eq. 3, computed as in eq. 4.
    """
    return _BiInteraction.apply(embedded)  # type: ignore[no-any-return]


class _InnerProducts(torch.autograd.Function):
    """`inner_products`; the matrix of all products is symmetric, so the gradient needs only one multiplication."""

    @staticmethod
    def forward(ctx: FunctionCtx, embedded: Tensor) -> Tensor:
        ctx.save_for_backward(embedded)  # type: ignore[attr-defined]
        fields = embedded.shape[1]
        left, right = torch.triu_indices(fields, fields, 1, device=embedded.device)
        gram = torch.bmm(embedded, embedded.transpose(1, 2))
        return gram.flatten(1).index_select(1, left * fields + right)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (embedded,) = ctx.saved_tensors
        fields, pairs = embedded.shape[1], grad.shape[1]
        left, right = torch.triu_indices(fields, fields, 1, device=grad.device)
        # Column of each pair in grad; the diagonal points past the end, to a column of zeros.
        place = torch.full((fields, fields), pairs, device=grad.device)
        place[left, right] = place[right, left] = torch.arange(pairs, device=grad.device)
        symmetric = nn.functional.pad(grad, (0, 1)).index_select(1, place.flatten())
        of_embedded = torch.bmm(symmetric.view(-1, fields, fields), embedded.to(grad.dtype))  # bfloat16 if `gram` was
        return of_embedded.to(embedded.dtype)


def inner_products(embedded: Tensor) -> Tensor:
    """The inner products of all pairs of fields: (B, F, D) -> (B, F (F - 1) / 2), by first and then second field."""
    return _InnerProducts.apply(embedded)  # type: ignore[no-any-return]


class BatchNorm(Divided, nn.BatchNorm1d):
    """BatchNorm over the rows of the batch, also if several processes share it: (b, C) -> (b, C)."""

    def forward(self, values: Tensor) -> Tensor:
        if self.share is None or not self.training:
            return super().forward(values)
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        assert self.momentum is not None
        values = values.to(self.weight.dtype)  # also if they come from a product in bfloat16: moments need more digits
        normalised, mean, variance = _Normalised.apply(values, self.weight, self.bias, self.eps, self.share)
        rows = len(self.share.ids)
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (rows / max(1, rows - 1)), self.momentum)
        return normalised  # type: ignore[no-any-return]


class _Normalised(torch.autograd.Function):
    """BatchNorm of the rows of one process (b, C) by the moments of the whole batch; also returns these, (C,) each.

    The moments of the processes are combined as by Chan et al. 1983, which loses no digits if the mean is large.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, values: Tensor, weight: Tensor, bias: Tensor, eps: float, share: Share
    ) -> tuple[Tensor, Tensor, Tensor]:
        own_mean = values.mean(0)
        own_squares = (values - own_mean).square().sum(0)
        means, squares = share.gathered(torch.stack([own_mean, own_squares])).unbind(1)  # (n, C) each
        counts = share.counts(values)
        mean = (means * counts).sum(0) / counts.sum()
        variance = (squares + (means - mean).square() * counts).sum(0) / counts.sum()
        scale = torch.rsqrt(variance + eps)
        centred = (values - mean) * scale
        ctx.save_for_backward(centred, weight, scale)  # type: ignore[attr-defined]
        ctx.share, ctx.rows = share, len(share.ids)  # type: ignore[attr-defined]
        ctx.mark_non_differentiable(mean, variance)
        return torch.addcmul(bias, centred, weight), mean, variance

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        centred, weight, scale = ctx.saved_tensors
        sums = torch.stack([grad.sum(0), (grad * centred).sum(0)])  # the gradients of bias and weight in the own rows
        mean, through = ctx.share.sum(sums.clone()) / ctx.rows
        return (grad - mean - centred * through) * (weight * scale), sums[1], sums[0], None, None


class Dropout(Divided, nn.Dropout):
    """Dropout that draws 16 random bits per number on a CPU; torch's dropout took a fifth of a training step.

    A number is kept with probability 1 - round(2**16 p) / 2**16 and then divided by this probability. If several
    processes share a batch, each draws for all rows, so that their random states stay the same.
    """

    def forward(self, values: Tensor) -> Tensor:
        if self.share is None or not self.training:
            return self._dropped(values)
        rows = len(self.share.ids)
        factors = self._dropped(torch.ones(rows, *values.shape[1:], dtype=_exact(values), device=values.device))
        return (values * factors[self.share.rows(rows)]).to(values.dtype)

    def _dropped(self, values: Tensor) -> Tensor:
        dropped = round(self.p * 2**16)
        if not self.training or values.is_cuda or dropped in (0, 2**16):
            return super().forward(values)
        words = torch.empty(-(-values.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        drawn = words.view(torch.int16)[: values.numel()].view(values.shape)
        mask = (drawn >= dropped - 2**15).to(_exact(values)).mul_(2**16 / (2**16 - dropped))
        return (values * mask).to(values.dtype)


def _exact(values: Tensor) -> torch.dtype:
    """The type of factors of numbers: float32 for bfloat16, which would round them all alike."""
    return torch.promote_types(values.dtype, torch.float32)


class MLP(nn.Sequential):
    """Linear, BatchNorm, ReLU, dropout for each hidden layer, then one linear layer: (B, ...) -> (B,), or (B, K).

    Args:
        inputs: numbers per row, F * D for field vectors.
        hidden: widths of the hidden layers.
        dropout: share of the outputs of each hidden layer that are dropped in training.
        outputs: K, of the last layer; 1 gives (B,).

    Raises:
        ValueError: if a width is below 1, or ``dropout`` is not in [0, 1).
    """

    def __init__(self, inputs: int, hidden: Sequence[int], dropout: float, outputs: int = 1) -> None:
        if any(width < 1 for width in hidden) or not 0 <= dropout < 1:
            raise ValueError(
                "hidden widths of an MLP must be at least 1, and dropout must be at least 0 and below 1, "
                f"got {hidden=}, {dropout=}"
            )
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [Dense(inputs, width), BatchNorm(width), nn.ReLU(), Dropout(dropout)]
            inputs = width
        super().__init__(*layers, Dense(inputs, outputs), nn.Flatten(0 if outputs == 1 else 1))

    def forward(self, inputs: Tensor | Vectors) -> Tensor:
        if not isinstance(inputs, Vectors):
            outputs: Tensor = super().forward(inputs.flatten(1))
            return outputs
        if len(self) < 4:  # no hidden layer
            return super().forward(inputs.dense().flatten(1))  # type: ignore[no-any-return]
        first, norm, *rest, last, flat = self
        outputs = inputs.through(first, norm)  # type: ignore[arg-type]
        for linear, norm in zip(rest[2::4], rest[3::4], strict=True):  # between them are ReLU and dropout
            outputs = nn.functional.linear(outputs.relu(), *inputs.folds.layer(linear, norm))  # type: ignore[arg-type]
        outputs = nn.functional.linear(outputs.relu(), last.weight, last.bias)  # type: ignore[arg-type]
        return outputs.flatten(flat.start_dim)  # type: ignore[arg-type]
