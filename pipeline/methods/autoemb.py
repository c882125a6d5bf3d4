"""AutoEmb. Zhao et al. 2021, "AutoEmb: Automated Embedding Dimensionality Search in Streaming Recommendations", ICDM.

Ids of a field are sorted by falling frequency, so buckets of popularity are blocks of rows. What is found is each
candidate's weight in every block of every field; from it the hard form gives each block one dimension, and the soft
form keeps the mixture with all of its candidates.

NOTE[DIFF]: the paper has users and items, popularity that grows along a stream, and never chooses. Here are fields of
any number, popularity is the rank by frequency in the training rows, what is built is trained anew, and there is a
choice, without which the mixture takes more bytes than the widest table. The paper's own setting is the stream's.

Nothing in the loss asks for few bytes: on rows of ``arch`` the weights go to the dimensions that overfit least, on the
training rows themselves (``level: single``) to the widest.
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
from pipeline.allocation.budget import TooFewBytes
from pipeline.allocation.evidence import Evidence
from pipeline.data.schema import Schema
from pipeline.embeddings.batch import Occurrences
from pipeline.embeddings.contract import FieldEmbedding
from pipeline.embeddings.cost import spent
from pipeline.embeddings.popularity import Controllers, Slices
from pipeline.embeddings.row_blocks import build as build_blocks
from pipeline.embeddings.row_blocks import padded, pick, sizes
from pipeline.workflow.plug import Least

# A tenth of the weights' learning rate, as published: at AutoDim's the controllers settle at random in the first steps.
ARCHITECTURE = {"lr": 0.0003}
MOST_CHOICES = 2**15  # of the dims of a field's blocks

Form = Literal["hard", "soft"]


class Mixture(FieldEmbedding):
    """Slices weighted by the block that a row is in; the weights (F, S, T) are a table, and learned elsewhere.

    Args:
        schema: F fields.
        dim: D.
        dims: T candidate dims.
        rows: (F, S) rows of the blocks, as of `pipeline.blocks.sizes`.
        weights: (F, S, T); zeros where they are still to come.
    """

    def __init__(self, schema: Schema, dim: int, dims: Sequence[int], rows: np.ndarray, weights: np.ndarray) -> None:
        super().__init__()
        if rows.shape[0] != len(schema) or weights.shape != (*rows.shape, len(dims)):
            raise ValueError(
                f"a mixture needs rows (F, S) and weights (F, S, T) of {len(schema)} fields and {len(dims)} "
                f"candidates, however: {rows.shape=}, {weights.shape=}"
            )
        self.dim = dim
        self.slices = Slices(schema, dims, dim)
        self.register_buffer("weights", torch.tensor(weights, dtype=torch.float32))
        self.register_buffer("bounds", torch.tensor(np.cumsum(rows)), False)
        self.register_buffer("cuts", torch.tensor(np.cumsum(rows, axis=1)[:, :-1], dtype=torch.int32), False)

    weights: Tensor
    bounds: Tensor
    cuts: Tensor

    def forward(self, occ: Occurrences) -> Tensor:
        """Occurrences -> (B, F, D)."""
        return self._mixed(occ, self.weights)

    def _mixed(self, occ: Occurrences, weights: Tensor) -> Tensor:
        block = torch.searchsorted(self.bounds, occ.rows, right=True)
        embedded: Tensor = self.slices(occ, nn.functional.embedding(block, weights.flatten(0, 1)))
        return embedded

    def packed(self) -> dict[str, Tensor]:
        return {**self.slices.packed(), "controller": self.weights, "index.cuts": self.cuts}


class Supernet(Mixture):
    """The mixture with controllers, which are the architecture.

    Args:
        candidates: for each of F fields its candidate dims, ascending.
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
        self.register_buffer("real", torch.tensor(rows > 0), False)  # blocks that have rows
        self.register_buffer("warm", torch.tensor(warm_up > 0))

    slots: Tensor
    real: Tensor
    warm: Tensor

    def forward(self, occ: Occurrences) -> Tensor:
        """Occurrences -> (B, F, D)."""
        if self.warm:
            valid = self.controllers.valid.float()
            return self._mixed(occ, (valid / valid.sum(1, keepdim=True))[:, None].expand_as(self.weights))
        return self._mixed(occ, self.controllers().exp())

    def arch_parameters(self) -> list[nn.Parameter]:
        return list(self.controllers.parameters())

    def before_step(self, step: int, planned: int) -> None:
        self.warm.fill_(step < math.ceil(self.warm_up * planned))

    def warming(self) -> bool:
        return bool(self.warm)

    def scores(self) -> Tensor:
        """(F, N) logarithm of each candidate's mean weight over the field's blocks."""
        weights = self.controllers().exp() * self.real[:, :, None]
        mean = weights.sum(1) / self.real.sum(1, keepdim=True)
        absent = nn.functional.pad(mean, (0, 1))  # the slot -1 of fields with fewer candidates
        return absent.gather(1, self.slots % absent.shape[1]).log()

    def watched(self) -> dict[str, float]:
        log_weights = self.controllers().detach()
        entropy = -(log_weights.exp() * log_weights.clamp(min=-1e9)).sum(2)
        return {"weights_entropy": float(entropy[self.real].mean())}

    def packed(self) -> dict[str, Tensor]:
        networks = {f"controller.{name}": value.detach() for name, value in self.controllers.named_parameters()}
        return {**self.slices.packed(), **networks, "index.cuts": self.cuts}

    def found(self) -> dict[str, np.ndarray]:
        log_weights = self.controllers().detach().cpu().numpy()
        return {"log_weights": log_weights, "rows": self.rows, "dims": np.array(self.dims)}


def search(
    schema: Schema,
    dim: int,
    candidates: Sequence[Sequence[int]],
    prices: np.ndarray,
    *,
    blocks: Annotated[int, Least(1)] = 4,
    ratio: Annotated[float, Least(1)] = 4.0,
    warm_up: Annotated[float, Least(0)] = 0.3,
) -> Supernet:
    """The mixture and its controllers.

    Args:
        blocks, ratio: of `pipeline.blocks.sizes`.
        warm_up: share of the planned steps in which all candidates have equal weights; none in the paper.
    """
    return Supernet(schema, dim, candidates, sizes(schema, blocks, ratio), warm_up)


def derive(given: Evidence, *, form: Form = "hard") -> Allocation:
    """From the weights in every block of a field, what is built.

    Args:
        form: "hard": each block has the dimension of the largest weight; under a budget the blocks have those of the
            largest sum of log-weights within it. "soft": the mixture with these weights, all candidates included.

    Raises:
        TooFewBytes: if the budget cannot be kept; says the least bytes that are possible.
    """
    if not given.found:
        raise ValueError("autoemb needs what its search found; nothing was given")
    log_weights, rows, dims = (given.found[name] for name in ("log_weights", "rows", "dims"))
    if form == "soft":
        return _soft(given, log_weights, rows, dims)
    choices, scores = [], []
    for f, offered in enumerate(given.candidates):
        there = int((rows[f] > 0).sum())
        if len(offered) ** there > MOST_CHOICES:
            raise ValueError(
                f"autoemb: field {given.schema.names[f]!r} has {len(offered)} candidates for each of {there} blocks, "
                f"more than {MOST_CHOICES} choices; offer fewer candidates, or set blocks in method.options.autoemb"
            )
        own = log_weights[f, :there][:, np.searchsorted(dims, offered)].astype(np.float64)
        picked = np.array(list(itertools.product(range(len(offered)), repeat=there)))
        scores.append(own[np.arange(there), picked].sum(1))
        choices.append(np.pad(np.array(offered)[picked], ((0, 0), (0, rows.shape[1] - there))).tolist())
    table = np.full((len(scores), max(map(len, scores))), -np.inf)
    for f, score in enumerate(scores):
        table[f, : len(score)] = score
    return pick("autoemb", given.schema, given.dim, rows, padded(choices), table, given.budget)


def _soft(given: Evidence, log_weights: np.ndarray, rows: np.ndarray, dims: np.ndarray) -> Allocation:
    widest = {name: max(offered) for name, offered in zip(given.schema.names, given.candidates, strict=True)}
    if not all(widest.values()):
        raise ValueError("autoemb: the soft form drops no field; offer each a candidate above 0")
    arrays = {"weights": np.exp(log_weights), "rows": rows}
    made = Allocation("autoemb", widest, {"form": "soft", "dims": dims.tolist()}, arrays)
    size = spent(build, given.schema, given.dim, made).bytes
    if given.budget is not None and size > given.budget:
        raise TooFewBytes(
            f"autoemb: the soft form keeps every candidate and has one size, which the budget of {given.budget:,} "
            f"bytes does not allow: the least is {size:,} bytes; raise the budget, or set form: hard"
        )
    return made


def build(schema: Schema, dim: int, allocation: Allocation) -> FieldEmbedding:
    if allocation.settings.get("form") != "soft":
        return build_blocks(schema, dim, allocation)
    arrays = allocation.arrays
    return Mixture(schema, dim, allocation.settings["dims"], arrays["rows"], arrays["weights"])
