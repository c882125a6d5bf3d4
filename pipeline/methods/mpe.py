"""MPE: mixed-precision embeddings, 2024, arXiv 2409.20305. The equations are in
`pipeline.embeddings.mixed_precision`.

A search learns how many bits each group of values of similar frequency deserves, while it trains through the rounding.
Then one width is chosen for each group, and a fresh model is trained through the rounding with these widths.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.budget import TooFewBytes
from pipeline.allocation.evidence import Evidence, Problem
from pipeline.allocation.knapsack import within_budget
from pipeline.data.schema import Schema
from pipeline.embeddings.cost import spent
from pipeline.embeddings.frequency import ranked, training_counts
from pipeline.embeddings.mixed_precision import WIDTHS, Groups, PackedPrecision, PrecisionSearch
from pipeline.workflow.validation import Count, Positive, Rate

GroupsOf = Literal["field", "all"]
Value = Literal["weighted", "probability", "frequency"]
ARCHITECTURE = {"level": "single", "lr": 0.001}  # the logits learn on the training batches, with the paper's rate


def find(
    problem: Problem,
    *,
    groups: Count = 32,
    groups_of: GroupsOf = "field",
    temperature: Positive = 0.003,
    price: Rate = 0.0,
    reach: Positive | None = None,
) -> PrecisionSearch:
    """The table, its steps and offset, and the logits of the widths, trained together.

    NOTE[DIFF]: the paper cuts the values of all fields into 128 groups. Here each field has groups of its own by
    default, so that a width can depend on the field. The ids of a field are sorted by falling frequency, and so the
    groups need no map. With groups across fields ("all"), every group is a range of ids in each field, and the lengths
    of the ranges are stored and counted.
    NOTE[DIFF]: counts are those of the training rows. In the authors' code they include the rows of the test.
    NOTE[DIFF]: the price of a bit is 0 by default, because the budget, and no price, says how many bits there are.

    Args:
        groups: number of groups, of each field or of all.
        groups_of: "field" or "all"; see above.
        temperature: of the softmax over widths.
        price: of an expected bit, the paper's lambda; 3e-4 on Criteo, 2e-6 on Avazu.
        reach: the largest magnitude of the codes before training; None for the paper's steps.

    Raises:
        ValueError: if there are no training ids.
    """
    counts = training_counts(problem)
    schema = problem.schema
    if groups_of == "field":
        cut = Groups.by_field(schema, groups)
    else:
        cut = Groups.across(ranked(counts, schema), schema, min(groups, schema.num_rows))
    return PrecisionSearch(schema, problem.dim, cut, counts, temperature, price, reach)


def derive(evidence: Evidence, *, groups_of: GroupsOf = "field", value: Value = "weighted") -> Allocation:
    """The widths with the largest sum of values within the budget, exactly; without one, those of the largest values.

    NOTE[DIFF]: the paper keeps the largest width whose probability is at least 1 / (2 |B|), and has no budget. There a
    bit of group g costs 1 / r_g in the loss of the search, where r_g says how frequent the group is. Here a bit costs
    what it takes, and instead the value of the group is multiplied by its occurrences. For groups of equal size, both
    are the same trade of values for bits.

    Args:
        groups_of: as in the search.
        value: of b bits for group g. "weighted": log p_gb times the occurrences of g. "probability": log p_gb.
            "frequency": a control without probabilities, minus the occurrences times 4 ** -b, which is proportional to
            the squared rounding error if all rows have the same spread.

    Raises:
        TooFewBytes: if not even one group with one bit fits.
    """
    found, dim, schema = evidence.arrays, evidence.dim, evidence.schema
    rows, of = found["rows"].astype(np.int64), found["of"]
    sizes = np.bincount(of, weights=rows).astype(np.int64)
    prices = sizes[:, None] * dim * np.array(WIDTHS)  # in bits

    def allocation(widths: np.ndarray) -> Allocation:
        arrays = {"rows": found["rows"], "bits": np.array(WIDTHS, np.uint8)[widths[of]]}
        arrays |= {"steps": found["steps"], "offset": found["offset"]}
        return evidence.allocation(dim, {"stored": groups_of == "all"}, arrays)

    # The fixed costs: those of one group with one bit, and at most five more steps.
    smallest = (np.arange(len(sizes)) == sizes.argmin()).astype(np.int64)
    least = spent(build, schema, dim, allocation(smallest)).bytes
    if evidence.budget is None:
        room = int(prices.max(1).sum())
    elif evidence.budget < least:
        raise TooFewBytes(f"mpe: {evidence.budget:,} bytes are too few, the least is {least:,}; raise the budget")
    else:
        fixed = least - -(-int(sizes.min()) * dim // 8) + 4 * (len(WIDTHS) - 2)
        room = 8 * (evidence.budget - fixed)
        if room < sizes.min() * dim:
            return allocation(smallest)
    return allocation(within_budget(_values(found, value), prices, room, drop_all=False))


def _values(found: Mapping[str, np.ndarray], value: Value) -> np.ndarray:
    """(G, widths) float64; see `derive`."""
    scores, occurrences = found["scores"].astype(np.float64), found["occurrences"].astype(np.float64)[:, None]
    weights = np.maximum(occurrences, 1) / occurrences.mean()
    if value == "frequency":
        values: np.ndarray = -weights * 4.0 ** -np.array(WIDTHS)
        return values
    return scores * weights if value == "weighted" else scores


def build(schema: Schema, dim: int, allocation: Allocation) -> PackedPrecision:
    """The table with the widths of an allocation.

    NOTE[DIFF]: the paper retrains with the searched MLP, steps and offset, and with the table as it was before the
    search. Only the allocation passes from a search to a retraining here, so steps and offset are the searched ones,
    and the MLP is drawn anew. So is the table; it is the same if both have the same seed.
    """
    arrays: Any = allocation.arrays  # together with the settings, all keywords
    return PackedPrecision(schema, allocation.common_dim, **allocation.settings, **arrays)
