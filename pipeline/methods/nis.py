"""NIS. Joglekar et al. 2020, "Neural Input Search for Large Scale Recommendation Models", KDD (arXiv 1907.04471).

A field's rows are cut into S blocks by frequency, the D columns into T blocks that end at the candidate dims. A choice
says which row blocks get which column blocks. A controller draws one choice per field and batch; what it has not drawn
is masked. The weights learn from batches of ``train`` under the masks drawn for them, the controller by REINFORCE from
the reward on batches of ``arch``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.budget import NO_CANDIDATE, in_bytes
from pipeline.allocation.evidence import DEFAULT_SHARE, Evidence
from pipeline.data.schema import Schema
from pipeline.embeddings.batch import Occurrences, spread
from pipeline.embeddings.contract import FieldEmbedding
from pipeline.embeddings.cost import full_tables
from pipeline.embeddings.row_blocks import BlockTables, padded, pick, prices, sizes
from pipeline.embeddings.row_blocks import build as build_blocks
from pipeline.embeddings.table import INIT_SD, Table
from pipeline.workflow.plug import Least

Form = Literal["single", "multi"]
# The controller has no gradient but that of its reward, which is of rows that no weight is trained on.
ARCHITECTURE = {"order": 1, "level": "bilevel"}


class Supernet(FieldEmbedding):
    """One table of width D under the mask of the choices that were drawn last; in evaluation, of the likeliest ones.

    Reward of a batch of ``arch``: R = -logloss - penalty * max(0, bytes / target - 1). Ascended is, with the moving
    average b of the rewards before,

        (R - b) * sum_f log pi_f(c_f) + entropy * sum_f H(pi_f).

    NOTE[DIFF]: R's quality is the negative logloss, for the AUC of one batch is noisier. Masked rows are not lifted to
    D coordinates, for a matrix for each choice would hardly be trained; what is built has its matrices.

    Args:
        schema: F fields.
        rows: (F, S) rows of the blocks, as of `pipeline.blocks.sizes`.
        choices: (F, N, S) dims of the blocks, as of `pipeline.blocks.padded`.
        terms: (F, N, P) logits of the field whose sum is a choice's logit; -1 for none.
        target: bytes.
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
        price = prices(rows, choices, dim)
        self.register_buffer("price", torch.tensor(np.where(price == NO_CANDIDATE, 0, price)), False)
        self.register_buffer("dims", torch.tensor(choices), False)
        self.register_buffer("terms", torch.tensor(np.where(terms < 0, number, terms)), False)
        self.register_buffer("there", torch.tensor(choices[:, :, 0] >= 0), False)
        self.register_buffer("bounds", torch.tensor(np.cumsum(rows)), False)
        self.register_buffer("columns", torch.arange(dim), False)
        self.register_buffer("warm", torch.tensor(warm_up > 0))
        self.register_buffer("baseline", torch.tensor(math.nan))
        self.drawn: Tensor | None = None  # (F,) choices of the last forward pass in training
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
        """(F, N) of every choice; -inf where a field has fewer than N."""
        logits = nn.functional.pad(self.logits, (0, 1))  # the last one is no logit, but 0
        flat = logits.gather(1, self.terms.flatten(1)).view(self.terms.shape)
        return torch.log_softmax(flat.sum(2).masked_fill(~self.there, -torch.inf), dim=1)

    @torch.no_grad()
    def draw(self) -> Tensor:
        """(F,) one choice per field."""
        return torch.multinomial(self.log_probability().exp(), 1)[:, 0]

    def forward(self, occ: Occurrences) -> Tensor:
        """Occurrences -> (B, F, D), under the choices that this draws."""
        values = self.table(occ.rows)
        if self.warm:
            return spread(values, occ)
        if self.training:
            self.drawn = self.draw()
            return spread(self.masked(values, occ, self.drawn), occ)
        return spread(self.masked(values, occ, self.log_probability().argmax(1)), occ)

    def masked(self, values: Tensor, occ: Occurrences, chosen: Tensor) -> Tensor:
        """(U, D): of each row as many columns as its block has dimensions; the field's shared vector for none."""
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
            raise ValueError("nis: an architecture step needs a forward pass in training mode before it")
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
    def watched(self) -> dict[str, float]:
        entropy = float(_entropy(self.log_probability()).mean())
        return {"entropy": entropy, "reward": self.reward, "baseline": float(self.baseline)}

    def packed(self) -> dict[str, Tensor]:
        return {"table": self.table.weight.detach(), "table.shared": self.shared.detach()}

    def found(self) -> dict[str, np.ndarray]:
        log_probability = self.log_probability().detach().cpu().numpy()
        return {"log_probability": log_probability, "rows": self.rows, "choices": self.choices}


def _entropy(log_probability: Tensor) -> Tensor:
    """(F, N) -> (F,), in nats."""
    return -(log_probability.exp() * log_probability.masked_fill(log_probability == -torch.inf, 0.0)).sum(1)


def search(
    schema: Schema,
    dim: int,
    candidates: Sequence[Sequence[int]],
    prices: np.ndarray,
    *,
    form: Form = "multi",
    blocks: Annotated[int, Least(1)] = 4,
    ratio: Annotated[float, Least(1)] = 4.0,
    target: int | float | None = None,
    penalty: Annotated[float, Least(0)] = 0.02,
    entropy: Annotated[float, Least(0)] = 0.001,
    decay: Annotated[float, Least(0)] = 0.9,
    warm_up: Annotated[float, Least(0)] = 0.3,
) -> Supernet:
    """The supernet with its controller.

    Args:
        form: "single": the first s row blocks have one dimension, the other rows share one vector. "multi": of each
            column block how many row blocks have it, of a later one no more than of an earlier one.
        blocks, ratio: of `pipeline.blocks.sizes`.
        target: bytes, or share of the full tables, that the reward asks for; None for `DEFAULT_SHARE`.
        penalty: logloss that being over the target by once its bytes is worth.
        entropy: weight of the controller's entropy, in logloss per nat.
        decay: of the moving average of rewards.
        warm_up: share of the planned steps in which all blocks are trained, and the controller is not.
    """
    rows = sizes(schema, blocks, ratio)
    offered = [_choices(dims, field_rows, form) for dims, field_rows in zip(candidates, rows, strict=True)]
    wanted = in_bytes(DEFAULT_SHARE if target is None else target, full_tables(schema, dim).bytes)
    return Supernet(
        schema,
        dim,
        rows,
        padded([choices for choices, _ in offered]),
        padded([terms for _, terms in offered]),
        target=wanted,
        penalty=penalty,
        entropy=entropy,
        decay=decay,
        warm_up=warm_up,
    )


def _choices(candidates: Sequence[int], rows: np.ndarray, form: Form) -> tuple[list[list[int]], list[list[int]]]:
    """Of one field the dims of its blocks and the numbers of its logits, for every choice.

    NOTE[DIFF]: a controller of the paper's multi-size form draws each column block's number of row blocks by itself.
    Here those that do not increase are all there is to draw from, with the softmax of the sums of the same logits.
    NOTE[DIFF]: the choice of no block at all is only there where the candidates have 0, which drops a field.
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


def derive(given: Evidence) -> Allocation:
    """The controller's most probable choice; under a budget, the most probable of those that it allows."""
    if not given.found:
        raise ValueError("nis needs what its search found; nothing was given")
    found = given.found
    scores = found["log_probability"].astype(np.float64)
    return pick("nis", given.schema, given.dim, found["rows"], found["choices"], scores, given.budget)


def build(schema: Schema, dim: int, allocation: Allocation) -> BlockTables:
    return build_blocks(schema, dim, allocation)
