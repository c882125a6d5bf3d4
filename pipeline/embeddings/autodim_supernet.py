"""The supernet and the decision of AutoDim, shared by several methods. Zhao et al. 2021, WWW."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.evidence import Evidence, Problem
from pipeline.allocation.knapsack import most_probable, within_budget
from pipeline.embeddings.batch import Occurrences
from pipeline.embeddings.contract import FieldEmbedding, Findings
from pipeline.embeddings.folded_mixture import FoldedMixture
from pipeline.embeddings.selection import Selection, Temperature


class AutoDimSupernet(FieldEmbedding):
    """All candidate dimensions of all fields at once, weighted by a soft selection.

    Args:
        problem: schema, candidates, prices and dim.
        temperature, warm_up: of `Selection`.
        bytes_weight: weight, in the architecture's loss, of the expected bytes divided by the bytes of the most
            expensive choice.
        dims_weight: weight, in the architecture's loss, of the expected dimension divided by D, averaged over fields.
        target: bytes. If given, the bytes term is instead the excess of the expected bytes over the target, divided by
            the target, or 0.
        mixture: the candidates' vectors; a `FoldedMixture` with its defaults if None.

    NOTE[DIFF]: the paper has neither term (both weights 0). Without bytes in the loss, a decisive search gives the
    largest tables the largest dimensions, because these have the most to learn, and it saves little. But bytes alone
    leave small tables to chance, because there every sufficient dimension is about as good. A price per dimension that
    is the same for all fields chooses the smallest sufficient one.
    """

    replayable = True

    def __init__(
        self,
        problem: Problem,
        temperature: Temperature,
        warm_up: float,
        *,
        bytes_weight: float = 0.0,
        dims_weight: float = 0.0,
        target: int | None = None,
        mixture: FoldedMixture | None = None,
    ) -> None:
        super().__init__()
        self.dim = problem.dim
        self.mixture = mixture or FoldedMixture(problem.schema, problem.candidates, problem.dim)
        self.selection = Selection(problem.candidates, temperature, warm_up)
        self.bytes_weight, self.targeted = bytes_weight, target is not None
        priced = np.where(self.selection.valid.numpy(), problem.prices, 0)
        unit = priced.max(1).sum() if target is None else target
        self.register_buffer("bytes_share", torch.tensor(priced / unit, dtype=torch.float32), False)  # (F, N)
        shares = dims_weight * self.selection.dims / (self.dim * len(priced))
        self.register_buffer("penalties", shares, False)  # (F, N)
        if not self.targeted:
            self.penalties += bytes_weight * self.bytes_share
        self.penalised = bytes_weight > 0 or dims_weight > 0

    bytes_share: Tensor
    penalties: Tensor

    def vectors(self, occ: Occurrences) -> Tensor:
        vectors: Tensor = self.mixture(occ, self.selection())
        return vectors

    def arch_parameters(self) -> list[nn.Parameter]:
        return [self.selection.logits]

    def before_step(self, step: int, planned: int) -> None:
        self.selection.before_step(step, planned)

    def warming(self) -> bool:
        return self.selection.warming

    def objective(self, loss: Tensor, part: str) -> Tensor:
        if part != "arch" or not self.penalised:
            return loss
        p = self.selection.log_alpha().exp()
        penalised = loss + (p * self.penalties).sum()
        if not self.targeted:
            return penalised
        return penalised + self.bytes_weight * torch.relu((p * self.bytes_share).sum() - 1)

    def findings(self) -> Findings:
        return Findings(self.selection.log_alpha(), {"tau": float(self.selection.tau)})

    def packed(self) -> dict[str, Tensor]:
        kept = {"table": self.mixture.table.weight.detach()}
        if self.mixture.unification == "linear":
            kept["projection"] = self.mixture.maps.detach()
        return kept


def decided(evidence: Evidence) -> Allocation:
    """Each field's most probable dimension; under a budget, the most probable choice that fits it.

    NOTE[DIFF]: the paper has no budget. Here the sum of log-probabilities is maximised within the budget.

    Raises:
        ValueError: if there are no scores.
        TooFewBytes: if no choice fits the budget.
    """
    if evidence.scores is None:
        raise ValueError(f"{evidence.method} needs the scores of a search, got none; search before you derive")
    if evidence.budget is None:
        return evidence.chosen(most_probable(evidence.scores, evidence.candidates))
    return evidence.chosen(within_budget(evidence.scores, evidence.prices, evidence.budget))
