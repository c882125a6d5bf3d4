"""The soft choice among candidate dimensions: logits, Gumbel-softmax and temperature."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn

from pipeline.workflow.validation import Positive, Rate, Section


class Temperature(Section):
    """The temperature tau = max(floor, start - rate * t), where t measures the weight steps since the warm-up.

    Args:
        start, rate, floor: see above.
        per: unit of t. "step": a weight step, as in the paper. "run": the planned steps after the warm-up, so t rises
            from 0 to 1, and a rate equal to ``start`` reaches the floor in a run of any length.
    """

    start: Positive = 1.0
    rate: Rate = 0.00005
    floor: Positive = 0.01
    per: Literal["step", "run"] = "step"

    @model_validator(mode="after")
    def _falls(self) -> Temperature:
        if self.floor > self.start:
            raise ValueError(f"the floor must be at most the start, got floor={self.floor:g}, start={self.start:g}")
        return self


PAPER = Temperature()  # Zhao et al. 2021
ANNEALED = Temperature(start=1.0, rate=1.0, floor=0.1, per="run")  # for runs shorter than the paper's millions of steps


class Selection(nn.Module):
    """The architecture logits of each field, and their Gumbel-softmax relaxation.

    Zhao et al. 2021: p_n is proportional to exp((log alpha_n + g_n) / tau) with alpha = softmax(logits) and
    g_n = -log(-log u_n), u_n ~ U(0, 1); one draw per field and step.

    Args:
        candidates: candidate dims of each of F fields, ascending; lists may differ in length.
        temperature: the course of tau.
        warm_up: share of the planned steps in which all candidates of a field have equal weights.

    Raises:
        ValueError: if candidates are not ascending or negative, or if warm_up is not a share.
    """

    def __init__(
        self, candidates: Sequence[Sequence[int]], temperature: Temperature = PAPER, warm_up: float = 0.0
    ) -> None:
        super().__init__()
        for dims in candidates:
            if not dims or sorted(set(dims)) != list(dims) or dims[0] < 0:
                raise ValueError(f"candidate dims must be ascending, distinct and not negative, got {dims}")
        if not 0 <= warm_up < 1:
            raise ValueError(f"warm_up must be at least 0 and below 1, got {warm_up}")
        self.temperature, self.warm_up = temperature, warm_up
        most = max(len(dims) for dims in candidates)
        valid = torch.tensor([[n < len(dims) for n in range(most)] for dims in candidates])
        self.logits = nn.Parameter(torch.zeros(len(candidates), most))
        self.register_buffer("valid", valid, persistent=False)
        self.register_buffer("dims", torch.tensor([[*d, *[0] * (most - len(d))] for d in candidates]), False)
        self.register_buffer("tau", torch.tensor(float(temperature.start)))
        self.warming = warm_up > 0

    valid: Tensor
    dims: Tensor
    tau: Tensor

    def before_step(self, step: int, planned: int) -> None:
        """Set temperature and warm-up for the weight step that follows ``step`` finished ones of ``planned``."""
        warm_up_steps = math.ceil(self.warm_up * planned)
        passed = max(0, step - warm_up_steps)
        span = 1 if self.temperature.per == "step" else max(1, planned - warm_up_steps)
        fallen = self.temperature.start - self.temperature.rate * passed / span
        self.tau.fill_(max(self.temperature.floor, fallen))
        self.warming = step < warm_up_steps

    def log_alpha(self) -> Tensor:
        """(F, N) log-probabilities of the candidates; -inf where a field has fewer than N."""
        return torch.log_softmax(self.logits.masked_fill(~self.valid, -torch.inf), dim=1)

    def forward(self) -> Tensor:
        """(F, N) mixture weights p: a Gumbel draw per field in training, none in evaluation."""
        if self.warming:
            return self.valid / self.valid.sum(1, keepdim=True)
        scaled: Tensor = self.logits
        if self.training:
            uniform = torch.rand_like(scaled).clamp_(min=torch.finfo(scaled.dtype).tiny)
            scaled = scaled - torch.log(-torch.log(uniform))
        return torch.softmax((scaled / self.tau).masked_fill(~self.valid, -torch.inf), dim=1)
