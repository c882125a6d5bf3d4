"""Adam for parameters whose gradient is sparse over table rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class RowOptimizer(torch.optim.Optimizer):
    """Updates the rows that a batch looks up; a subclass defines `_update`."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self._update(param, group)
        return result

    def _update(self, param: Tensor, group: dict[str, Any]) -> None:
        """Move the rows of a parameter that its gradient has."""
        raise NotImplementedError


class RowAdam(RowOptimizer):
    """Adam on the rows that a batch looks up; all other rows and their moments stay unchanged.

    Kingma & Ba 2015, algorithm 1, row by row. In dense Adam, the moments of a row without a gradient decay, and its old
    momentum still moves it; here neither happens. For rows in every batch, the two are equal; the bias correction
    counts all steps in both. `torch.optim.SparseAdam` computes the same at several times the cost, without weight
    decay.

    Args:
        params: 2-D parameters with coalesced sparse gradients (`pipeline.embeddings.table.Table`).
        lr, betas, eps: as in Adam.
        weight_decay: L2 coefficient, added to the gradient of the rows of the batch. A row decays only in steps in
            which it occurs.
        fixed: for gradients in which a row may stand several times, in neighbouring places, the first of which has the
            whole gradient; see `pipeline.embeddings.fixed`. Then a step reads the content of no tensor and keeps its
            number, and ``lr`` if that is a tensor, on the device, so that a CUDA graph can replay it.

    Raises:
        ValueError: if ``lr`` or ``weight_decay`` is negative.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float | Tensor = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        fixed: bool = False,
    ) -> None:
        if lr < 0 or weight_decay < 0:
            raise ValueError(f"lr and weight_decay must be at least 0, got {lr} and {weight_decay}")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.fixed = fixed

    def _update(self, param: Tensor, group: dict[str, Any]) -> None:
        assert param.grad is not None
        if self.fixed:
            rows, values = param.grad._indices()[0], param.grad._values()
            values = values[torch.searchsorted(rows, rows)]  # so that equal rows get equal updates
        else:
            rows, values = distinct(param.grad)
        state = self.state[param]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(param)
            state["exp_avg_sq"] = torch.zeros_like(param)
        if not self.fixed:
            state["step"] = int(state["step"]) + 1
        elif isinstance(step := state["step"], Tensor) and (step.dtype, step.device) == (torch.float64, param.device):
            step.add_(1)
        else:  # the first step, also after a checkpoint
            state["step"] = torch.tensor(float(step) + 1, dtype=torch.float64, device=param.device)
        beta1, beta2 = group["betas"]
        current = param.index_select(0, rows)
        if group["weight_decay"]:
            values = values.add(current, alpha=group["weight_decay"])
        first = state["exp_avg"].index_select(0, rows).lerp_(values, 1 - beta1)
        second = state["exp_avg_sq"].index_select(0, rows).mul_(beta2).addcmul_(values, values, value=1 - beta2)
        state["exp_avg"].index_copy_(0, rows, first)
        state["exp_avg_sq"].index_copy_(0, rows, second)
        correction1 = 1 - beta1 ** state["step"]
        correction2 = 1 - beta2 ** state["step"]
        if self.fixed:
            second.div_(correction2.to(second.dtype))
            first.mul_((-group["lr"] / correction1).to(first.dtype))
            param.index_copy_(0, rows, current.addcdiv_(first, second.sqrt_().add_(group["eps"])))
            return
        denominator = second.div_(correction2).sqrt_().add_(group["eps"])
        param.index_copy_(0, rows, current.addcdiv_(first, denominator, value=-group["lr"] / correction1))


def distinct(grad: Tensor) -> tuple[Tensor, Tensor]:
    """Row numbers (U,) and values (U, K) of a sparse gradient, each row once.

    Autograd drops the flag of a coalesced gradient, and ``coalesce()`` costs as much as the update. It is called only
    if the rows are not ascending.
    """
    rows = grad._indices()[0]
    if not bool((rows[1:] > rows[:-1]).all()):  # e.g. two lookups in one table
        grad = grad.coalesce()
        rows = grad.indices()[0]
    return rows, grad._values()
