"""AutoDim. Zhao et al. 2021, "AutoDim: Field-aware Embedding Dimension Search in Recommender Systems", WWW."""

from __future__ import annotations

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.evidence import Evidence, Problem
from pipeline.embeddings.autodim_supernet import AutoDimSupernet, decided
from pipeline.embeddings.folded_mixture import FoldedMixture, Gain, Sharing, Transform, Unification
from pipeline.embeddings.selection import PAPER, Temperature
from pipeline.workflow.validation import Fraction, Rate


def find(
    problem: Problem,
    *,
    temperature: Temperature = PAPER,
    warm_up: Fraction = 0.0,
    bytes_weight: Rate = 0.0,
    dims_weight: Rate = 0.0,
    sharing: Sharing = "shared",
    unification: Unification = "linear",
    transform: Transform = "field",
    gain: Gain = "field",
    gain_init: float = 0.1,
) -> AutoDimSupernet:
    """The supernet; its defaults are the paper's, except where `FoldedMixture` marks a departure.

    Args:
        temperature, warm_up, bytes_weight, dims_weight: of `AutoDimSupernet`.
        sharing, unification, transform, gain, gain_init: of `FoldedMixture`.
    """
    mixture = FoldedMixture(
        problem.schema,
        problem.candidates,
        problem.dim,
        sharing=sharing,
        unification=unification,
        transform=transform,
        gain=gain,
        gain_init=gain_init,
    )
    return AutoDimSupernet(
        problem, temperature, warm_up, bytes_weight=bytes_weight, dims_weight=dims_weight, mixture=mixture
    )


def derive(evidence: Evidence) -> Allocation:
    return decided(evidence)
