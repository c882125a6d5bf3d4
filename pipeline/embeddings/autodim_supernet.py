"""AutoDim's supernet and its decision, which several methods share. Zhao et al. 2021, WWW."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.evidence import Evidence
from pipeline.allocation.knapsack import argmax, within_budget
from pipeline.data.schema import Schema
from pipeline.embeddings.batch import Occurrences
from pipeline.embeddings.contract import FieldEmbedding
from pipeline.embeddings.folded_mixture import FoldedMixture
from pipeline.embeddings.selection import Selection
from pipeline.workflow.plug import check_options

# A temperature that falls to its floor over a run of any length; the paper's falls by the step, in millions of steps.
ANNEALED: Mapping[str, Any] = MappingProxyType({"start": 1.0, "rate": 1.0, "floor": 0.1, "per": "run"})


class Supernet(FieldEmbedding):
    """Every candidate dimension of every field at once, weighted by the selection.

    Args:
        prices: (F, N) bytes of each candidate; used by the bytes term alone.
        bytes_weight: weight of the expected bytes, as a share of the most expensive choice's, in the
            architecture's loss.
        dims_weight: weight of the expected dimension, as a share of D and averaged over the fields.
        target: bytes. If given, bytes up to it are free: the bytes term is what the expected bytes exceed it by,
            as a share of it.

    NOTE[DIFF]: the paper has neither term (0). Without bytes in the loss a decisive search gives the biggest
    tables the biggest dimensions, for they have the most to learn, and saves little. Bytes in turn are no reason
    to prefer one dimension to another where a table is small: every dimension that suffices is as good there,
    and chance decides. A price per dimension, alike for all fields, settles it for the smallest that suffices.
    """

    def __init__(
        self,
        mixture: FoldedMixture,
        selection: Selection,
        prices: np.ndarray,
        bytes_weight: float,
        dims_weight: float,
        target: int | None = None,
    ) -> None:
        super().__init__()
        self.dim = mixture.dim
        self.mixture, self.selection = mixture, selection
        self.bytes_weight, self.targeted = bytes_weight, target is not None
        priced = np.where(selection.valid.numpy(), prices, 0)
        unit = priced.max(1).sum() if target is None else target
        self.register_buffer("bytes_share", torch.tensor(priced / unit, dtype=torch.float32), False)  # (F, N)
        self.register_buffer("penalties", dims_weight * selection.dims / (self.dim * len(priced)), False)  # (F, N)
        if not self.targeted:
            self.penalties += bytes_weight * self.bytes_share
        self.penalised = bytes_weight > 0 or dims_weight > 0

    bytes_share: Tensor
    penalties: Tensor

    def forward(self, occ: Occurrences) -> Tensor:
        """Occurrences -> (B, F, D)."""
        embedded: Tensor = self.mixture(occ, self.selection())
        return embedded

    def arch_parameters(self) -> list[nn.Parameter]:
        return [self.selection.logits]

    def before_step(self, step: int, planned: int) -> None:
        self.selection.before_step(step, planned)

    def warming(self) -> bool:
        return bool(self.selection.warming)

    def watched(self) -> dict[str, float]:
        return {"tau": float(self.selection.tau)}

    def objective(self, loss: Tensor, part: str) -> Tensor:
        if part != "arch" or not self.penalised:
            return loss
        p = self.selection.log_alpha().exp()
        penalised = loss + (p * self.penalties).sum()
        if not self.targeted:
            return penalised
        return penalised + self.bytes_weight * torch.relu((p * self.bytes_share).sum() - 1)

    def packed(self) -> dict[str, Tensor]:
        kept = {"table": self.mixture.table.weight.detach()}
        if self.mixture.unification == "linear":
            kept["projection"] = self.mixture.maps.detach()
        return kept

    def scores(self) -> Tensor:
        return self.selection.log_alpha()


def supernet(
    schema: Schema,
    dim: int,
    candidates: Sequence[Sequence[int]],
    prices: np.ndarray,
    *,
    temperature: Mapping[str, Any],
    warm_up: float,
    bytes_weight: float = 0.0,
    dims_weight: float = 0.0,
    target: int | None = None,
    **form: Any,
) -> Supernet:
    """A fresh supernet.

    Args:
        temperature: ``start``, ``rate``, ``floor``, ``per`` of `Selection`.
        warm_up: share of the planned steps with equal weights.
        bytes_weight, dims_weight, target: see `Supernet`.
        form: options of `FoldedMixture`.
    """
    if "warm_up" in temperature:
        raise ValueError("method.options in params.yaml: warm_up stands beside temperature, not in it")
    check_options(Selection, temperature, "method.options: temperature in params.yaml")
    selection = Selection(candidates, warm_up=warm_up, **temperature)
    mixture = FoldedMixture(schema, candidates, dim, **form)
    return Supernet(mixture, selection, prices, bytes_weight, dims_weight, target)


def decided(method: str, given: Evidence) -> Allocation:
    """Each field's most probable dimension; under a budget, the most probable choice that fits it.

    NOTE[DIFF]: the paper knows no budget. Ours maximises the sum of log-probabilities within the bytes.
    """
    if given.scores is None:
        raise ValueError(f"{method} needs the scores of a search; none were given")
    if given.budget is None:
        dims = argmax(given.scores, given.candidates)
    else:
        chosen = within_budget(given.scores, given.prices, given.budget)
        dims = [field[n] for field, n in zip(given.candidates, chosen, strict=True)]
    return Allocation(method, {name: int(d) for name, d in zip(given.schema.names, dims, strict=True)})
