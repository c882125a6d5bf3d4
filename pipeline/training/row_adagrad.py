"""Adagrad for parameters whose gradient is sparse over table rows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from pipeline.training.row_adam import RowOptimizer, distinct


class RowAdagrad(RowOptimizer):
    """Adagrad on the rows that a batch looks up. All other rows have no gradient, and Adagrad leaves them as they are.

    Duchi, Hazan and Singer 2011, figure 1, with diagonal matrices: g^2 is added to a sum s, and the step is
    -lr g / (sqrt(s) + eps). `torch.optim.Adagrad` computes the same, but sorts the rows anew, and warns of
    its own sparse tensors.

    Args:
        params: 2-D parameters with coalesced sparse gradients (`pipeline.embeddings.table.Table`).
        lr: learning rate.
        eps: as above.

    Raises:
        ValueError: if ``lr`` is negative.
    """

    def __init__(self, params: Iterable[Tensor], lr: float = 0.01, eps: float = 1e-10) -> None:
        if lr < 0:
            raise ValueError(f"lr must be at least 0, got {lr}")
        super().__init__(params, {"lr": lr, "eps": eps})

    def _update(self, param: Tensor, group: dict[str, Any]) -> None:
        assert param.grad is not None
        rows, values = distinct(param.grad)
        state = self.state[param]
        if not state:
            state["sum"] = torch.zeros_like(param)
        total = state["sum"].index_select(0, rows).addcmul_(values, values)
        state["sum"].index_copy_(0, rows, total)
        current = param.index_select(0, rows)
        param.index_copy_(0, rows, current.addcdiv_(values, total.sqrt_().add_(group["eps"]), value=-group["lr"]))
