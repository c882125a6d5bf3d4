"""Mixed dimensions by a power rule. Ginart, Naumov, Mudigere, Yang and Zou 2021, ISIT (arXiv 1909.11810).

    d_f = D (n_f / n_min)**-alpha

with n_f the number of values of a field and n_min the smallest: the fewer values, the wider. Nothing is searched.
"""

from __future__ import annotations

import numpy as np

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.budget import TooFewBytes
from pipeline.allocation.evidence import Evidence
from pipeline.data.schema import Schema
from pipeline.embeddings.cost import prices
from pipeline.embeddings.mixed import MixedTables

search = None


def derive(given: Evidence, *, powers_of_two: bool = False) -> Allocation:
    """The dimensions of the smallest alpha that keeps within the budget, or within a quarter of the full tables.

    All dimensions fall as alpha rises, so no other alpha that fits gives any field more than the smallest does.
    At 0 all fields have D. Bytes are those of tables and projections; they need not fall with alpha, since a field
    narrower than D has a projection to pay for, so every alpha that gives other dimensions is looked at.

    NOTE[DIFF]: the authors' code solves lambda = B / sum_f n_f**(1 - alpha) for a given alpha, which rounding and
    projections then overspend, and leaves fields of up to 200 values at D. Here alpha is what the budget decides, as
    in Zhang et al. 2024 (VLDB, embedding compression benchmark), and no field is an exception.

    Args:
        powers_of_two: round to the nearest power of two (in the exponent), as the authors' code may, instead of to
            the nearest whole number.

    Raises:
        TooFewBytes: if no alpha keeps within the budget; says the least bytes of any.
    """
    sizes, dim = given.schema.cardinalities, given.dim
    offered = prices(build, given.schema, [range(1, dim + 1)] * len(sizes), dim)
    found = [dimensions(sizes, dim, alpha, powers_of_two) for alpha in alphas(sizes, dim, powers_of_two)]
    costs = [int(offered[np.arange(len(sizes)), dims - 1].sum()) for dims in found]
    fitting = [i for i, cost in enumerate(costs) if cost <= given.limit]
    if not fitting:
        raise TooFewBytes(
            f"mde: no alpha makes {given.limit:,} bytes or less, the least is {min(costs):,}; raise the budget"
        )
    return Allocation("mde", dict(zip(given.schema.names, found[fitting[0]].tolist(), strict=True)))


def dimensions(sizes: np.ndarray, dim: int, alpha: float, powers_of_two: bool = False) -> np.ndarray:
    """(F,) dimensions, 1 to ``dim``, of fields of so many values (F,)."""
    exact = dim * (sizes / sizes.min()) ** -alpha
    rounded = 2.0 ** np.rint(np.log2(exact)) if powers_of_two else np.rint(exact)
    return np.clip(rounded, 1, dim).astype(np.int64)


def alphas(sizes: np.ndarray, dim: int, powers_of_two: bool = False) -> np.ndarray:
    """Ascending, 0 first: one alpha for each choice of dimensions that any alpha of 0 or more gives."""
    ratios = np.log(np.unique(sizes[sizes > sizes.min()]) / sizes.min())
    whole = 2.0 ** np.arange(np.ceil(np.log2(dim)) + 1) if powers_of_two else np.arange(1.0, dim)
    edges = whole * 2**0.5 if powers_of_two else whole + 0.5  # above which a dimension is rounded upwards
    edges = edges[edges < dim]
    jumps = np.unique(np.log(dim / edges)[:, None] / ratios)  # where a dimension is rounded to the next smaller one
    if not len(jumps):
        return np.zeros(1)
    return np.concatenate([[0], (jumps[1:] + jumps[:-1]) / 2, [jumps[-1] + 1]])


def build(schema: Schema, dim: int, allocation: Allocation) -> MixedTables:
    """NOTE[DIFF]: projections start as those of all methods do, not by Xavier's rule; see `MixedTables`."""
    return MixedTables(schema, allocation.dims, dim)
