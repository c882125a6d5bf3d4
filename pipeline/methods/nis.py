"""NIS. Joglekar et al. 2020, "Neural Input Search for Large Scale Recommendation Models", KDD (arXiv 1907.04471).

The rows of a field are cut into S blocks by frequency, and the D columns into T blocks that end at the candidate dims.
A choice assigns column blocks to each row block. A controller draws one choice per field and batch, and the rest of the
table is masked. The weights learn from batches of ``train`` under the drawn masks. The controller learns by REINFORCE,
from the reward on batches of ``arch``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.budget import NO_CANDIDATE
from pipeline.allocation.evidence import Evidence, Problem
from pipeline.data.schema import Schema
from pipeline.embeddings.batch import Occurrences
from pipeline.embeddings.contract import FieldEmbedding, Findings
from pipeline.embeddings.row_blocks import Ratio, block_rows, build, choice_prices, padded, pick
from pipeline.embeddings.table import INIT_SD, Table
from pipeline.workflow.validation import Budget, Count, Fraction, Rate

__all__ = ["ARCHITECTURE", "build", "derive", "find"]

Form = Literal["single", "multi"]
# The controller learns only from its reward, which needs rows that the weights are not trained on.
ARCHITECTURE = {"order": 1, "level": "bilevel"}


class MaskedBlocks(FieldEmbedding):
    """One table of width D, masked by drawn choices in training, and by the most probable choices in evaluation.

    The reward of a batch of ``arch`` is R = -loss - penalty * max(0, bytes / target - 1). With the moving average b of
    earlier rewards, the controller maximises

        (R - b) * sum_f log pi_f(c_f) + entropy * sum_f H(pi_f).

    NOTE[DIFF]: the quality in R is the task's negative loss, because a ranking metric of one batch is noisier. Masked
    rows are not lifted to D coordinates, because a matrix for each choice would hardly be trained; the final tables
    have such matrices.

    Args:
        schema: F fields.
        dim: D.
        rows: (F, S) rows of the blocks, from `pipeline.embeddings.row_blocks.block_rows`.
        choices: (F, N, S) dims of the blocks, from `pipeline.embeddings.row_blocks.padded`.
        terms: (F, N, P) positions of the field's logits whose sum is a choice's logit; -1 for none.
        target: bytes.
        penalty, entropy, decay, warm_up: see `find`.
    """

    def __init__(
        self,
        schema: Schema,
        dim: int,
        rows: np.ndarray,
        choices: np.ndarray,
        terms: np.ndarray,
        *,
        target: int,
        penalty: float,
        entropy: float,
        decay: float,
        warm_up: float,
    ) -> None:
        super().__init__()
        self.dim, self.rows, self.choices = dim, rows, choices
        self.target, self.penalty, self.entropy_weight, self.decay = target, penalty, entropy, decay
        self.warm_up = warm_up
        self.table = Table(schema.num_rows, dim)
        self.shared = nn.Parameter(torch.randn(len(schema), dim) * INIT_SD)
        number = int(terms.max()) + 1
        self.logits = nn.Parameter(torch.zeros(len(schema), number))
        price = choice_prices(rows, choices, dim)
        self.register_buffer("price", torch.tensor(np.where(price == NO_CANDIDATE, 0, price)), False)
        self.register_buffer("dims", torch.tensor(choices), False)
        self.register_buffer("terms", torch.tensor(np.where(terms < 0, number, terms)), False)
        self.register_buffer("there", torch.tensor(choices[:, :, 0] >= 0), False)
        self.register_buffer("bounds", torch.tensor(np.cumsum(rows)), False)
        self.register_buffer("columns", torch.arange(dim), False)
        self.register_buffer("warm", torch.tensor(warm_up > 0))
        self.register_buffer("baseline", torch.tensor(math.nan))
        self.drawn: Tensor | None = None  # (F,) choices of the last lookup in training
        self.reward = math.nan

    price: Tensor
    dims: Tensor
    terms: Tensor
    there: Tensor
    bounds: Tensor
    columns: Tensor
    warm: Tensor
    baseline: Tensor

    def log_probability(self) -> Tensor:
        """(F, N) log-probability of every choice; -inf where a field has fewer than N choices."""
        logits = nn.functional.pad(self.logits, (0, 1))  # the last one is not a logit but 0, for the terms -1
        flat = logits.gather(1, self.terms.flatten(1)).view(self.terms.shape)
        return torch.log_softmax(flat.sum(2).masked_fill(~self.there, -torch.inf), dim=1)

    @torch.no_grad()
    def draw(self) -> Tensor:
        """(F,) one choice per field."""
        return torch.multinomial(self.log_probability().exp(), 1)[:, 0]

    def vectors(self, occ: Occurrences) -> Tensor:
        """(U, D); in training, the choices for the mask are drawn anew at each call."""
        values: Tensor = self.table(occ.rows)
        if self.warm:
            return values
        if self.training:
            self.drawn = self.draw()
            return self.masked(values, occ, self.drawn)
        return self.masked(values, occ, self.log_probability().argmax(1))

    def masked(self, values: Tensor, occ: Occurrences, chosen: Tensor) -> Tensor:
        """(U, D) rows cut to the dimension of their block; where it is 0, the field's shared vector.

        Args:
            values: (U, D) full rows.
            occ: says which rows they are.
            chosen: (F,) choice of each field.
        """
        block = torch.searchsorted(self.bounds, occ.rows, right=True)
        field = torch.arange(len(chosen), device=chosen.device)
        dims = self.dims[field, chosen].flatten()[block][:, None]
        blocks = self.dims.shape[2]
        shared = nn.functional.embedding(block // blocks, self.shared)
        return torch.where(dims == 0, shared, torch.where(self.columns < dims, values, 0.0))

    def arch_parameters(self) -> list[nn.Parameter]:
        return [self.logits]

    def before_step(self, step: int, planned: int) -> None:
        self.warm.fill_(step < math.ceil(self.warm_up * planned))

    def warming(self) -> bool:
        return bool(self.warm)

    def objective(self, loss: Tensor, part: str) -> Tensor:
        if part != "arch":
            return loss
        if self.drawn is None:
            raise ValueError("nis: a step of the architecture must follow a lookup in training mode, got none")
        log_probability = self.log_probability()
        chosen = self.drawn[:, None]
        size = self.price.gather(1, chosen).sum()
        over = (size / self.target - 1).clamp(min=0)
        reward = -loss.detach() - self.penalty * over
        self.reward = float(reward)
        if self.baseline.isnan():
            self.baseline.copy_(reward)
        advantage = reward - self.baseline
        self.baseline.lerp_(reward, 1 - self.decay)
        gain = advantage * log_probability.gather(1, chosen).sum()
        return -gain - self.entropy_weight * _entropy(log_probability).sum()

    @torch.no_grad()
    def findings(self) -> Findings:
        entropy = float(_entropy(self.log_probability()).mean())
        watched = {"entropy": entropy, "reward": self.reward, "baseline": float(self.baseline)}
        return Findings(watched=watched, arrays=self._choices)

    def packed(self) -> dict[str, Tensor]:
        return {"table": self.table.weight.detach(), "table.shared": self.shared.detach()}

    @torch.no_grad()
    def _choices(self) -> dict[str, np.ndarray]:
        """``log_probability``: (F, N); ``rows``: (F, S) of the blocks; ``choices``: (F, N, S) dims of the blocks."""
        log_probability = self.log_probability().cpu().numpy()
        return {"log_probability": log_probability, "rows": self.rows, "choices": self.choices}


def _entropy(log_probability: Tensor) -> Tensor:
    """(F, N) -> (F,), in nats."""
    return -(log_probability.exp() * log_probability.masked_fill(log_probability == -torch.inf, 0.0)).sum(1)


def find(
    problem: Problem,
    *,
    form: Form = "multi",
    blocks: Count = 4,
    ratio: Ratio = 4.0,
    target: Budget | None = None,
    penalty: Rate = 0.02,
    entropy: Rate = 0.001,
    decay: Fraction = 0.9,
    warm_up: Fraction = 0.3,
) -> MaskedBlocks:
    """The table and its controller.

    Args:
        form: "single": the first row blocks have the same dimension, and the other rows share one vector. "multi": each
            column block covers a number of row blocks of its own, which does not rise from column block to column
            block.
        blocks, ratio: of `pipeline.embeddings.row_blocks.block_rows`.
        target: bytes, or a share of the full tables' bytes, beyond which the reward falls; a quarter of these if None.
        penalty: reduction of the reward, in units of the loss, at twice the target.
        entropy: weight of the controller's entropy, in loss per nat.
        decay: of the moving average of rewards.
        warm_up: share of the planned steps in which all blocks are trained, and the controller is not.
    """
    rows = block_rows(problem.schema, blocks, ratio)
    offered = [_choices(dims, own, form) for dims, own in zip(problem.candidates, rows, strict=True)]
    return MaskedBlocks(
        problem.schema,
        problem.dim,
        rows,
        padded([choices for choices, _ in offered]),
        padded([terms for _, terms in offered]),
        target=problem.target(target),
        penalty=penalty,
        entropy=entropy,
        decay=decay,
        warm_up=warm_up,
    )


def _choices(candidates: Sequence[int], rows: np.ndarray, form: Form) -> tuple[list[list[int]], list[list[int]]]:
    """For every choice of one field: the dims of its blocks, and the positions of its logits.

    NOTE[DIFF]: in the paper's multi-size form, a controller draws each column block's number of row blocks
    independently. Here only sequences of numbers that do not rise can be drawn, with probabilities from the softmax of
    the sums of the same logits.
    NOTE[DIFF]: the choice without any block exists only if 0, which drops a field, is a candidate.
    """
    widths = [d for d in candidates if d]
    most, there = len(rows), int((rows > 0).sum())
    choices, terms = [], []
    if form == "single":
        pairs = itertools.product(range(1, there + 1), range(1, len(widths) + 1))
        counts = [[s] * t + [0] * (len(widths) - t) for s, t in pairs]
    else:
        falling = itertools.combinations_with_replacement(range(there, -1, -1), len(widths))
        counts = [list(numbers) for numbers in falling if numbers and numbers[0]]
    if len(widths) < len(candidates):
        counts.append([0] * len(widths))
    for i, numbers in enumerate(counts):
        kept = [sum(number > block for number in numbers) for block in range(most)]
        choices.append([widths[k - 1] if k else 0 for k in kept])
        terms.append([i] if form == "single" else [n * (most + 1) + s for n, s in enumerate(numbers)])
    return choices, terms


def derive(evidence: Evidence) -> Allocation:
    """The controller's most probable choice; under a budget, the most probable choice that fits it.

    Raises:
        ValueError: if there are no choices of a search.
        TooFewBytes: if no choice fits the budget.
    """
    if not evidence.arrays:
        raise ValueError("nis needs the choices that its search finds, got none; search before you derive")
    scores = evidence.arrays["log_probability"].astype(np.float64)
    return pick(evidence, evidence.arrays["rows"], evidence.arrays["choices"], scores)
