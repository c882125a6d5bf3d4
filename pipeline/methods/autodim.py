"""AutoDim. Zhao et al. 2021, "AutoDim: Field-aware Embedding Dimension Search in Recommender Systems", WWW."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.allocation import Allocation
from pipeline.choice import argmax, within_budget
from pipeline.embeddings import FieldEmbedding, MixedTables, Occurrences
from pipeline.evidence import Evidence
from pipeline.mixtures import FoldedMixture, Gain, Selection, Sharing, Transform, Unification
from pipeline.plug import Least, check_options
from pipeline.schema import Schema


class Supernet(FieldEmbedding):
    """Every candidate dimension of every field at once, weighted by the selection.

    Args:
        prices: (F, N) bytes of each candidate; used by the bytes term alone.
        bytes_weight: weight of the expected bytes, as a share of the most expensive choice's, in the
            architecture's loss.
        dims_weight: weight of the expected dimension, as a share of D and averaged over the fields.

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
    ) -> None:
        super().__init__()
        self.dim = mixture.dim
        self.mixture, self.selection = mixture, selection
        priced = np.where(selection.valid.numpy(), prices, 0)
        bytes_share = torch.tensor(priced / priced.max(1).sum(), dtype=torch.float32)
        dims_share = selection.dims / (self.dim * len(priced))
        self.register_buffer("penalties", bytes_weight * bytes_share + dims_weight * dims_share, False)  # (F, N)
        self.penalised = bytes_weight > 0 or dims_weight > 0

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
        return loss + (self.selection.log_alpha().exp() * self.penalties).sum()

    def packed(self) -> dict[str, Tensor]:
        kept = {"table": self.mixture.table.weight.detach()}
        if self.mixture.unification == "linear":
            kept["projection"] = self.mixture.maps.detach()
        return kept

    def scores(self) -> Tensor:
        return self.selection.log_alpha()


def search(
    schema: Schema,
    dim: int,
    candidates: Sequence[Sequence[int]],
    prices: np.ndarray,
    *,
    temperature: Mapping[str, Any] | None = None,
    warm_up: float = 0.0,
    bytes_weight: Annotated[float, Least(0)] = 0.0,
    dims_weight: Annotated[float, Least(0)] = 0.0,
    sharing: Sharing = "shared",
    unification: Unification = "linear",
    transform: Transform = "field",
    gain: Gain = "field",
    gain_init: float = 0.1,
) -> Supernet:
    """The supernet; its defaults are the paper's, except `FoldedMixture`'s marked departures.

    Args:
        temperature: ``start``, ``rate``, ``floor``, ``per`` of `Selection`.
        warm_up: share of the planned steps with equal weights.
        bytes_weight, dims_weight: of the two penalties; see `Supernet`.
        sharing, unification, transform, gain, gain_init: of `FoldedMixture`.
    """
    temperature = temperature or {}
    if "warm_up" in temperature:
        raise ValueError("method.options in params.yaml: warm_up stands beside temperature, not in it")
    check_options(Selection, temperature, "method.options: temperature in params.yaml")
    selection = Selection(candidates, warm_up=warm_up, **temperature)
    mixture = FoldedMixture(
        schema,
        candidates,
        dim,
        sharing=sharing,
        unification=unification,
        transform=transform,
        gain=gain,
        gain_init=gain_init,
    )
    return Supernet(mixture, selection, prices, bytes_weight, dims_weight)


def derive(given: Evidence) -> Allocation:
    """Each field's most probable dimension; under a budget, the most probable choice that fits it.

    NOTE[DIFF]: the paper knows no budget. Ours maximises the sum of log-probabilities within the bytes.
    """
    if given.scores is None:
        raise ValueError("autodim needs the scores of a search; none were given")
    if given.budget is None:
        dims = argmax(given.scores, given.candidates)
    else:
        chosen = within_budget(given.scores, given.prices, given.budget)
        dims = [field[n] for field, n in zip(given.candidates, chosen, strict=True)]
    return Allocation("autodim", {name: int(d) for name, d in zip(given.schema.names, dims, strict=True)})


def build(schema: Schema, dim: int, allocation: Allocation) -> MixedTables:
    return MixedTables(schema, allocation.dims, dim)
