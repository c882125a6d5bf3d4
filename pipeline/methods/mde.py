"""Mixed dimensions by a power rule. Ginart, Naumov, Mudigere, Yang and Zou 2021, ISIT (arXiv 1909.11810).

    d_f = D (n_f / n_min)**-alpha

where n_f is the number of values of a field, and n_min the smallest of them: the fewer values, the wider. There is no
search.
"""

from __future__ import annotations

import numpy as np

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.budget import TooFewBytes
from pipeline.allocation.evidence import Evidence
from pipeline.embeddings.cost import prices
from pipeline.embeddings.mixed import MixedTables


def derive(evidence: Evidence, *, powers_of_two: bool = False) -> Allocation:
    """The dimensions of the smallest alpha within the limit.

    No dimension rises with alpha, so no other alpha within the limit gives any field more. At alpha 0 all fields have
    D. Bytes are those of tables and projections. They may rise with alpha, because a field narrower than D needs a
    projection; so every alpha that gives different dimensions is tried.

    NOTE[DIFF]: the authors' code solves lambda = B / sum_f n_f**(1 - alpha) for a given alpha, exceeds it by rounding
    and projections, and leaves fields of up to 200 values at D. Here the budget decides alpha, as in Zhang et al. 2024
    (VLDB, embedding compression benchmark), and no field is an exception.
    NOTE[DIFF]: projections are initialised as in all methods, not by Xavier's rule; see `MixedTables`.

    Args:
        powers_of_two: round the exponent, so that dimensions are powers of two, as the authors' code can, instead of
            rounding to the nearest integer.

    Raises:
        TooFewBytes: if no alpha fits the limit; the message says the fewest possible bytes.
    """
    sizes, dim = evidence.schema.cardinalities, evidence.dim
    priced = prices(MixedTables, evidence.schema, [range(1, dim + 1)] * len(sizes), dim)
    tried = [dimensions(sizes, dim, alpha, powers_of_two) for alpha in alphas(sizes, dim, powers_of_two)]
    costs = [int(priced[np.arange(len(sizes)), dims - 1].sum()) for dims in tried]
    fitting = [i for i, cost in enumerate(costs) if cost <= evidence.limit]
    if not fitting:
        raise TooFewBytes(
            f"mde: no alpha makes {evidence.limit:,} bytes or less, the least is {min(costs):,}; raise the budget"
        )
    return evidence.allocation(dict(zip(evidence.schema.names, tried[fitting[0]], strict=True)))


def dimensions(sizes: np.ndarray, dim: int, alpha: float, powers_of_two: bool = False) -> np.ndarray:
    """(F,) dimensions, 1 to ``dim``, by the power rule.

    Args:
        sizes: (F,) number of values of each field.
        dim: D.
        alpha: of the rule.
        powers_of_two: see `derive`.
    """
    exact = dim * (sizes / sizes.min()) ** -alpha
    rounded = 2.0 ** np.rint(np.log2(exact)) if powers_of_two else np.rint(exact)
    return np.clip(rounded, 1, dim).astype(np.int64)


def alphas(sizes: np.ndarray, dim: int, powers_of_two: bool = False) -> np.ndarray:
    """One alpha for each possible set of dimensions, ascending from 0; arguments as in `dimensions`."""
    ratios = np.log(np.unique(sizes[sizes > sizes.min()]) / sizes.min())
    whole = 2.0 ** np.arange(np.ceil(np.log2(dim)) + 1) if powers_of_two else np.arange(1.0, dim)
    edges = whole * 2**0.5 if powers_of_two else whole + 0.5  # rounding changes the dimension here
    edges = edges[edges < dim]
    jumps = np.unique(np.log(dim / edges)[:, None] / ratios)  # the alphas at which some field crosses an edge
    if not len(jumps):
        return np.zeros(1)
    return np.concatenate([[0], (jumps[1:] + jumps[:-1]) / 2, [jumps[-1] + 1]])
