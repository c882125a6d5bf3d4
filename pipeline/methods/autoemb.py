"""AutoEmb. Zhao et al. 2021, "AutoEmb: Automated Embedding Dimensionality Search in Streaming Recommendations", ICDM.

Ids of a field are sorted by falling frequency, so buckets of popularity are blocks of rows. The search finds the weight
of each candidate in every block of every field. The hard form then gives each block one dimension; the soft form keeps
the mixture with all candidates.

NOTE[DIFF]: the paper has users and items, popularity that grows along a stream, and no choice at the end. Here there
may be any number of fields, popularity is the rank by frequency in the training rows, and the result is trained anew.
There is also a choice of one dimension, because the mixture takes more bytes than the widest table. The stage `stream`
has the paper's own setting.

The loss has no term for bytes. On rows of ``arch``, the largest weights go to the dimensions that overfit least; on the
training rows themselves (``level: single``), to the widest.
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
from pipeline.allocation.budget import TooFewBytes
from pipeline.allocation.evidence import Evidence, Problem
from pipeline.data.schema import Schema
from pipeline.embeddings.batch import Occurrences
from pipeline.embeddings.contract import FieldEmbedding, Findings
from pipeline.embeddings.cost import spent
from pipeline.embeddings.popularity import Controllers, Slices
from pipeline.embeddings.row_blocks import Ratio, block_rows, padded, pick
from pipeline.embeddings.row_blocks import build as build_blocks
from pipeline.workflow.validation import Count, Fraction

# As published, a tenth of the weights' learning rate. With AutoDim's rate, the first steps decide the controllers by
# chance.
ARCHITECTURE = {"lr": 0.0003}
MOST_CHOICES = 2**15  # combinations of dims of a field's blocks

Form = Literal["hard", "soft"]


class BlockMixture(FieldEmbedding):
    """Slices weighted by the block of a row; the weights (F, S, T) are a table that is not trained here.

    Args:
        schema: F fields.
        dim: D.
        dims: T candidate dims.
        rows: (F, S) rows of the blocks, from `pipeline.embeddings.row_blocks.block_rows`.
        weights: (F, S, T) of the candidates in every block.

    Raises:
        ValueError: if the arrays do not fit the schema and the candidates.
    """

    def __init__(self, schema: Schema, dim: int, dims: Sequence[int], rows: np.ndarray, weights: np.ndarray) -> None:
        super().__init__()
        if rows.shape[0] != len(schema) or weights.shape != (*rows.shape, len(dims)):
            raise ValueError(
                f"rows (F, S) and weights (F, S, T) must be of {len(schema)} fields and {len(dims)} candidates, "
                f"got {rows.shape=}, {weights.shape=}; derive the allocation again"
            )
        self.dim = dim
        self.slices = Slices(schema, dims, dim)
        self.register_buffer("weights", torch.tensor(weights, dtype=torch.float32))
        self.register_buffer("bounds", torch.tensor(np.cumsum(rows)), False)
        self.register_buffer("cuts", torch.tensor(np.cumsum(rows, axis=1)[:, :-1], dtype=torch.int32), False)

    weights: Tensor
    bounds: Tensor
    cuts: Tensor

    def vectors(self, occ: Occurrences) -> Tensor:
        block = torch.searchsorted(self.bounds, occ.rows, right=True)
        vectors: Tensor = self.slices(occ, nn.functional.embedding(block, self.block_weights().flatten(0, 1)))
        return vectors

    def block_weights(self) -> Tensor:
        """(F, S, T) of the candidates in every block."""
        return self.weights

    def packed(self) -> dict[str, Tensor]:
        return {**self.slices.packed(), "controller": self.weights, "index.cuts": self.cuts}


class ControlledMixture(BlockMixture):
    """The mixture whose weights come from controllers, the parameters of the architecture.

    Args:
        schema: F fields.
        dim: D.
        candidates: candidate dims of each field, ascending.
        rows: of `BlockMixture`.
        warm_up: share of the planned steps in which all candidates have equal weights.
    """

    def __init__(
        self, schema: Schema, dim: int, candidates: Sequence[Sequence[int]], rows: np.ndarray, warm_up: float
    ) -> None:
        dims = sorted(set(itertools.chain(*candidates)))
        super().__init__(schema, dim, dims, rows, np.zeros((*rows.shape, len(dims))))
        self.dims, self.rows, self.warm_up = dims, rows, warm_up
        valid = torch.tensor([[d in field for d in dims] for field in candidates])
        self.controllers = Controllers(valid, rows.shape[1])
        most = max(map(len, candidates))
        slots = [[*(dims.index(d) for d in field), *[-1] * (most - len(field))] for field in candidates]
        self.register_buffer("slots", torch.tensor(slots), False)
        self.register_buffer("real", torch.tensor(rows > 0), False)  # the blocks that have rows
        self.register_buffer("warm", torch.tensor(warm_up > 0))

    slots: Tensor
    real: Tensor
    warm: Tensor

    def block_weights(self) -> Tensor:
        if self.warm:
            valid = self.controllers.valid.float()
            return (valid / valid.sum(1, keepdim=True))[:, None].expand_as(self.weights)
        weights: Tensor = self.controllers().exp()
        return weights

    def arch_parameters(self) -> list[nn.Parameter]:
        return list(self.controllers.parameters())

    def before_step(self, step: int, planned: int) -> None:
        self.warm.fill_(step < math.ceil(self.warm_up * planned))

    def warming(self) -> bool:
        return bool(self.warm)

    def findings(self) -> Findings:
        """The scores are logarithms of each candidate's mean weight over the field's blocks."""
        log_weights = self.controllers()
        mean = (log_weights.exp() * self.real[:, :, None]).sum(1) / self.real.sum(1, keepdim=True)
        absent = nn.functional.pad(mean, (0, 1))  # for the slots -1 of fields with fewer candidates
        scores = absent.gather(1, self.slots % absent.shape[1]).log()
        known = log_weights.detach()
        entropy = -(known.exp() * known.clamp(min=-1e9)).sum(2)
        watched = {"weights_entropy": float(entropy[self.real].mean())}
        return Findings(scores, watched, self._weights)

    @torch.no_grad()
    def _weights(self) -> dict[str, np.ndarray]:
        """``log_weights``: (F, S, T); ``rows``: (F, S) of the blocks; ``dims``: (T,) of the candidates."""
        log_weights = self.controllers().cpu().numpy()
        return {"log_weights": log_weights, "rows": self.rows, "dims": np.array(self.dims)}

    def packed(self) -> dict[str, Tensor]:
        networks = {f"controller.{name}": value.detach() for name, value in self.controllers.named_parameters()}
        return {**self.slices.packed(), **networks, "index.cuts": self.cuts}


def find(problem: Problem, *, blocks: Count = 4, ratio: Ratio = 4.0, warm_up: Fraction = 0.3) -> ControlledMixture:
    """The mixture and its controllers.

    Args:
        blocks, ratio: of `pipeline.embeddings.row_blocks.block_rows`.
        warm_up: share of the planned steps in which all candidates have equal weights; 0 in the paper.
    """
    rows = block_rows(problem.schema, blocks, ratio)
    return ControlledMixture(problem.schema, problem.dim, problem.candidates, rows, warm_up)


def derive(evidence: Evidence, *, form: Form = "hard") -> Allocation:
    """The dimensions of the blocks, or their mixture, from the weights of the search.

    Args:
        evidence: the weights and the budget.
        form: "hard": each block has the dimension with the largest weight; under a budget, the dimensions of all blocks
            have the largest sum of log-weights within it. "soft": the mixture of all candidates, with these weights.

    Raises:
        ValueError: if there are no weights, if a field has too many choices, or if the soft form would drop a field.
        TooFewBytes: if the budget is too small; the message says the fewest possible bytes.
    """
    if not evidence.arrays:
        raise ValueError("autoemb needs the weights that its search finds, got none; search before you derive")
    if form == "soft":
        return _soft(evidence)
    log_weights, rows, dims = (evidence.arrays[name] for name in ("log_weights", "rows", "dims"))
    choices, scores = [], []
    for f, offered in enumerate(evidence.candidates):
        there = int((rows[f] > 0).sum())
        if len(offered) ** there > MOST_CHOICES:
            raise ValueError(
                f"autoemb: field {evidence.schema.names[f]!r} must have at most {MOST_CHOICES} choices, got "
                f"{len(offered)} candidates for each of {there} blocks; offer fewer candidates, or lower "
                "method.options.autoemb.blocks"
            )
        own = log_weights[f, :there][:, np.searchsorted(dims, offered)].astype(np.float64)
        picked = np.array(list(itertools.product(range(len(offered)), repeat=there)))
        scores.append(own[np.arange(there), picked].sum(1))
        choices.append(np.pad(np.array(offered)[picked], ((0, 0), (0, rows.shape[1] - there))).tolist())
    table = np.full((len(scores), max(map(len, scores))), -np.inf)
    for f, score in enumerate(scores):
        table[f, : len(score)] = score
    return pick(evidence, rows, padded(choices), table)


def _soft(evidence: Evidence) -> Allocation:
    widest = {name: max(dims) for name, dims in zip(evidence.schema.names, evidence.candidates, strict=True)}
    if not all(widest.values()):
        raise ValueError("autoemb: the soft form cannot drop a field; offer every field a candidate above 0")
    arrays = {"weights": np.exp(evidence.arrays["log_weights"]), "rows": evidence.arrays["rows"]}
    allocation = evidence.allocation(widest, {"form": "soft", "dims": evidence.arrays["dims"].tolist()}, arrays)
    size = spent(build, evidence.schema, evidence.dim, allocation).bytes
    if evidence.budget is not None and size > evidence.budget:
        raise TooFewBytes(
            f"autoemb: the soft form keeps every candidate and has only one size, which is above the budget of "
            f"{evidence.budget:,} bytes: the least is {size:,} bytes; raise the budget, or set form: hard"
        )
    return allocation


def build(schema: Schema, dim: int, allocation: Allocation) -> FieldEmbedding:
    if allocation.settings.get("form") != "soft":
        return build_blocks(schema, dim, allocation)
    arrays = allocation.arrays
    return BlockMixture(schema, dim, allocation.settings["dims"], arrays["rows"], arrays["weights"])
