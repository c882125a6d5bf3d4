"""The soft choice among candidate dimensions: logits, Gumbel-softmax and temperature."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn


class Selection(nn.Module):
    """Architecture logits per field, their Gumbel-softmax relaxation, and its temperature.

    Zhao et al. 2021: p_n ~ exp((log alpha_n + g_n) / tau) with alpha = softmax(logits), g_n = -log(-log u_n),
    one draw per field and step; tau = max(floor, start - rate * t), t counting weight steps after the warm-up.

    Args:
        candidates: for each of F fields its candidate dims, ascending; lists may differ in length.
        start, rate, floor: of the temperature.
        per: "step": the rate is per weight step, as in the paper. "run": per planned run, so that rate = start
            reaches 0 (and before that the floor) at the end, however short the run is.
        warm_up: share of the planned steps during which every candidate has weight 1/N.
    """

    def __init__(
        self,
        candidates: Sequence[Sequence[int]],
        *,
        start: float = 1.0,
        rate: float = 0.00005,
        floor: float = 0.01,
        per: Literal["step", "run"] = "step",
        warm_up: float = 0.0,
    ) -> None:
        super().__init__()
        for dims in candidates:
            if not dims or sorted(set(dims)) != list(dims) or dims[0] < 0:
                raise ValueError(f"candidate dims must be ascending, distinct and not negative, however: {dims}")
        if not 0 < floor <= start or rate < 0:
            raise ValueError(
                f"temperature needs 0 < floor <= start and rate >= 0, however: {start=}, {rate=}, {floor=}"
            )
        if per not in ("step", "run"):
            raise ValueError(f"temperature rate is per 'step' or per 'run', however: {per=}")
        if not 0 <= warm_up < 1:
            raise ValueError(f"warm_up is a share of the planned steps, 0 <= warm_up < 1, however: {warm_up=}")
        self.start, self.rate, self.floor, self.per, self.warm_up = start, rate, floor, per, warm_up
        most = max(len(dims) for dims in candidates)
        valid = torch.tensor([[n < len(dims) for n in range(most)] for dims in candidates])
        self.logits = nn.Parameter(torch.zeros(len(candidates), most))
        self.register_buffer("valid", valid, persistent=False)
        self.register_buffer("dims", torch.tensor([[*d, *[0] * (most - len(d))] for d in candidates]), False)
        self.register_buffer("tau", torch.tensor(float(start)))
        self.register_buffer("warming", torch.tensor(warm_up > 0))

    valid: Tensor
    dims: Tensor
    tau: Tensor
    warming: Tensor

    def before_step(self, step: int, planned: int) -> None:
        """Set temperature and warm-up for the weight step that follows ``step`` finished ones of ``planned``."""
        warm_up_steps = math.ceil(self.warm_up * planned)
        passed = max(0, step - warm_up_steps)
        span = 1 if self.per == "step" else max(1, planned - warm_up_steps)
        self.tau.fill_(max(self.floor, self.start - self.rate * passed / span))
        self.warming.fill_(step < warm_up_steps)

    def log_alpha(self) -> Tensor:
        """(F, N) log-probabilities of the candidates; -inf where a field has fewer than N."""
        return torch.log_softmax(self.logits.masked_fill(~self.valid, -torch.inf), dim=1)

    def forward(self) -> Tensor:
        """(F, N) mixture weights p: one Gumbel draw per field in training, none in evaluation."""
        if self.warming:
            return self.valid / self.valid.sum(1, keepdim=True)
        scaled: Tensor = self.logits
        if self.training:
            uniform = torch.rand_like(scaled).clamp_(min=torch.finfo(scaled.dtype).tiny)
            scaled = scaled - torch.log(-torch.log(uniform))
        return torch.softmax((scaled / self.tau).masked_fill(~self.valid, -torch.inf), dim=1)
