"""The gradient of the architecture parameters in bilevel optimisation: DARTS of first and second order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from pipeline.training.row_adam import distinct

EPSILON = 0.01  # Liu et al. 2019, footnote 2: finite differences step by EPSILON / |gradient|


class Gradient(Protocol):
    """The gradients of a loss in inputs, as `torch.autograd.grad` returns them."""

    def __call__(
        self, outputs: Tensor, inputs: Sequence[Tensor], *, allow_unused: bool = False
    ) -> tuple[Tensor, ...]: ...


def architecture_gradient(
    arch_loss: Callable[[], Tensor],
    train_loss: Callable[[], Tensor],
    arch: Sequence[nn.Parameter],
    weights: Sequence[nn.Parameter],
    xi: float = 0.0,
    gradient: Gradient = torch.autograd.grad,
) -> None:
    """Set ``grad`` of the architecture parameters; weights and their gradients stay unchanged.

    Liu et al. 2019 (DARTS), eq. 7 and 8:

        grad_a L_arch(w', a) - xi * [grad_a L_train(w+, a) - grad_a L_train(w-, a)] / (2 eps)

    with w' = w - xi grad_w L_train(w, a), w+- = w +- eps grad_w' L_arch(w', a). AutoDim uses the first order, xi = 0,
    which needs no gradients of weights.

    Args:
        arch_loss: computes the loss on a batch of ``arch``; called once.
        train_loss: computes the loss on a batch of ``train``; called three times if xi > 0, with the same random draws
            each time, because the difference of two calls would otherwise be noise.
        arch: the architecture parameters.
        weights: all other parameters.
        xi: learning rate of the virtual weight step; 0 for the first order.
        gradient: that of a batch, if this process has only some of its rows.
    """
    if xi == 0:
        with _untrained(weights):
            gradients = gradient(arch_loss(), list(arch))
        _assign(arch, gradients)
        return

    used = [w for w in weights if w.requires_grad]
    generator = torch.get_rng_state()
    train_gradient = _changes(gradient(train_loss(), used, allow_unused=True))
    with _moved(used, train_gradient, -xi):
        both = gradient(arch_loss(), [*arch, *used], allow_unused=True)
    gradients, direction = both[: len(arch)], _changes(both[len(arch) :])
    after = torch.get_rng_state()
    norm = torch.stack([change.values.square().sum() for change in direction if change]).sum().sqrt()
    eps = EPSILON / float(norm) if norm > 0 else 0.0
    if eps:
        sides = []
        for sign in (1, -1):
            torch.set_rng_state(generator)
            with _moved(used, direction, sign * eps), _untrained(weights):
                sides.append(gradient(train_loss(), list(arch)))
        torch.set_rng_state(after)
        gradients = tuple(g - xi * (plus - minus) / (2 * eps) for g, plus, minus in zip(gradients, *sides, strict=True))
    _assign(arch, gradients)


def _assign(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient


class _Change(NamedTuple):
    """A gradient: ``values`` of the distinct ``rows`` (U,), or of the whole parameter if ``rows`` is None."""

    rows: Tensor | None
    values: Tensor


def _changes(gradients: Sequence[Tensor | None]) -> list[_Change | None]:
    return [g if g is None else _Change(*distinct(g)) if g.is_sparse else _Change(None, g) for g in gradients]


@contextmanager
def _untrained(weights: Sequence[nn.Parameter]) -> Iterator[None]:
    """Compute no gradients of the weights within the block; the architecture step does not use them."""
    trained = [w for w in weights if w.requires_grad]
    for w in trained:
        w.requires_grad_(False)
    try:
        yield
    finally:
        for w in trained:
            w.requires_grad_(True)


@contextmanager
def _moved(weights: Sequence[nn.Parameter], direction: Sequence[_Change | None], by: float) -> Iterator[None]:
    """Move the weights to w + by * direction within the block, and restore exactly w afterwards."""
    saved: list[tuple[nn.Parameter, Tensor | None, Tensor]] = []
    with torch.no_grad():
        for w, change in zip(weights, direction, strict=True):
            if change is None:
                continue
            rows, values = change
            saved.append((w, rows, w.clone() if rows is None else w.index_select(0, rows)))
            if rows is None:
                w.add_(values, alpha=by)
            else:
                w.index_copy_(0, rows, saved[-1][2].add(values, alpha=by))
    try:
        yield
    finally:
        with torch.no_grad():
            for w, saved_rows, values in saved:
                if saved_rows is None:
                    w.copy_(values)
                else:
                    w.index_copy_(0, saved_rows, values)


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Within the block, BatchNorm uses the statistics of the batch and does not update its running statistics."""
    saved = [(m, m.momentum) for m in model.modules() if isinstance(getattr(m, "momentum", None), float)]
    for module, _ in saved:
        module.momentum = 0.0  # type: ignore[assignment]
    try:
        yield
    finally:
        for module, momentum in saved:
            module.momentum = momentum
