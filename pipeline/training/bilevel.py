"""The gradient of architecture parameters in bilevel optimisation: DARTS, first and second order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline.training.row_adam import distinct

EPSILON = 0.01  # Liu et al. 2019, footnote 2: finite differences step by EPSILON / |gradient|


def architecture_gradient(
    arch_loss: Callable[[], Tensor],
    train_loss: Callable[[], Tensor],
    arch: Sequence[nn.Parameter],
    weights: Sequence[nn.Parameter],
    xi: float = 0.0,
) -> None:
    """Set ``grad`` of the architecture parameters; leave weights and their gradients as they were.

    Liu et al. 2019 (DARTS), eq. 7 and 8:

        grad_a L_arch(w', a) - xi * [grad_a L_train(w+, a) - grad_a L_train(w-, a)] / (2 eps)

    with w' = w - xi grad_w L_train(w, a), w+- = w +- eps grad_w' L_arch(w', a). AutoDim uses xi = 0, the first
    order, which needs no gradient of any weight.

    Args:
        arch_loss, train_loss: compute the loss on a fixed batch; called once and (if xi > 0) three times. Random
            draws are the same in all calls of ``train_loss``, without which the difference would be noise.
        xi: learning rate of the virtual weight step; 0 for the first order.
    """
    if xi == 0:
        with _untrained(weights):
            gradients = torch.autograd.grad(arch_loss(), list(arch))
        _assign(arch, gradients)
        return

    used = [w for w in weights if w.requires_grad]
    generator = torch.get_rng_state()
    train_gradient = _changes(torch.autograd.grad(train_loss(), used, allow_unused=True))
    with _moved(used, train_gradient, -xi):
        both = torch.autograd.grad(arch_loss(), [*arch, *used], allow_unused=True)
    gradients, direction = both[: len(arch)], _changes(both[len(arch) :])
    after = torch.get_rng_state()
    norm = torch.stack([change.values.square().sum() for change in direction if change]).sum().sqrt()
    eps = EPSILON / float(norm) if norm > 0 else 0.0
    if eps:
        sides = []
        for sign in (1, -1):
            torch.set_rng_state(generator)
            with _moved(used, direction, sign * eps), _untrained(weights):
                sides.append(torch.autograd.grad(train_loss(), list(arch)))
        torch.set_rng_state(after)
        gradients = tuple(g - xi * (plus - minus) / (2 * eps) for g, plus, minus in zip(gradients, *sides, strict=True))
    _assign(arch, gradients)


def _assign(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient


class _Change(NamedTuple):
    """A gradient: of the rows (U,), each once, or of all numbers where ``rows`` is None."""

    rows: Tensor | None
    values: Tensor


def _changes(gradients: Sequence[Tensor | None]) -> list[_Change | None]:
    return [g if g is None else _Change(*distinct(g)) if g.is_sparse else _Change(None, g) for g in gradients]


@contextmanager
def _untrained(weights: Sequence[nn.Parameter]) -> Iterator[None]:
    """Compute no gradients of the weights: the architecture step would throw them away."""
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
    """Within the block the weights stand at w + by * direction; after it at w again, to the bit."""
    kept: list[tuple[nn.Parameter, Tensor | None, Tensor]] = []
    with torch.no_grad():
        for w, change in zip(weights, direction, strict=True):
            if change is None:
                continue
            rows, values = change
            kept.append((w, rows, w.clone() if rows is None else w.index_select(0, rows)))
            if rows is None:
                w.add_(values, alpha=by)
            else:
                w.index_copy_(0, rows, kept[-1][2].add(values, alpha=by))
    try:
        yield
    finally:
        with torch.no_grad():
            for w, touched, values in kept:
                if touched is None:
                    w.copy_(values)
                else:
                    w.index_copy_(0, touched, values)


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Normalise by the batch, as in training, yet leave running statistics to the training rows."""
    kept = [(m, m.momentum) for m in model.modules() if isinstance(getattr(m, "momentum", None), float)]
    for module, _ in kept:
        module.momentum = 0.0  # type: ignore[assignment]
    try:
        yield
    finally:
        for module, momentum in kept:
            module.momentum = momentum
