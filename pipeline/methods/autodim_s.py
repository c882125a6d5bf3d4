"""AutoDim-s: weights and architecture on the same batches. Zhao et al. 2021, "AutoDim", WWW, compared methods."""

from __future__ import annotations

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.evidence import Evidence, Problem
from pipeline.embeddings.autodim_supernet import AutoDimSupernet, decided
from pipeline.embeddings.selection import ANNEALED, Temperature
from pipeline.workflow.validation import Fraction

ARCHITECTURE = {"level": "single"}  # trained with the weights, by the gradient of the training batch


def find(problem: Problem, *, temperature: Temperature = ANNEALED, warm_up: Fraction = 0.5) -> AutoDimSupernet:
    """AutoDim's supernet.

    NOTE[DIFF]: temperature and warm-up follow the length of the run, as in the main job; the paper's are for millions
    of steps. Bytes and dimensions have no price, because prices are terms of the loss on ``arch``, which is not used.

    Args:
        temperature, warm_up: of `AutoDimSupernet`.
    """
    return AutoDimSupernet(problem, temperature, warm_up)


def derive(evidence: Evidence) -> Allocation:
    """Each field's most probable dimension; see `decided`.

    NOTE[DIFF]: the paper does not say how AutoDim-s decides, but it reports fewer parameters than the full tables have,
    so dimensions are decided somehow. Here they are decided as in AutoDim.
    """
    return decided(evidence)
