"""How many dimensions each field deserves: the components, and their bits, that coded full models keep."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from pipeline.coding.choice import Plan
from pipeline.coding.transform import as_shares


def deserved(names: Sequence[str], plans: Sequence[Sequence[Plan]], weights: Sequence[Tensor]) -> dict[str, Any]:
    """What coded fields keep, by block of rows of similar frequency.

    Args:
        names: of the F fields.
        plans: for each seed the plans of the fields, all for the same size.
        weights: for each field (V,), how often each row is looked up, in the order of coding.

    Returns:
        ``fields``: for each name its blocks, frequent rows first: ``rows``, their share of the field's ``lookups``, and
        for each seed the ``components`` with bits and the ``bits`` of a row. ``agreement``: see `agreement`.
    """
    fields = {}
    for f, name in enumerate(names):
        of_seeds = [of_seed[f] for of_seed in plans]
        # The rows of a field that one seed codes row by row are one block; that of the other seeds are cut further.
        cuts = max((plan.cuts for plan in of_seeds), key=len)
        places = [np.searchsorted(plan.cuts, cuts[:-1], side="right") - 1 for plan in of_seeds]
        used = [
            np.minimum((plan.bits > 0).sum(1), plan.cuts[-1])[place]  # V rows span V dimensions at most
            for plan, place in zip(of_seeds, places, strict=True)
        ]
        bits = [plan.bits.sum(1, dtype=int)[place] for plan, place in zip(of_seeds, places, strict=True)]
        shares = as_shares(weights[f].double())
        fields[name] = [
            {
                "rows": int(b - a),
                "lookups": float(shares[a:b].sum()),
                "components": [int(of_seed[j]) for of_seed in used],
                "bits": [int(of_seed[j]) for of_seed in bits],
            }
            for j, (a, b) in enumerate(itertools.pairwise(cuts.tolist()))
        ]
    return {"fields": fields, "agreement": agreement(fields)}


def agreement(fields: Mapping[str, Sequence[Mapping[str, Any]]]) -> float | None:
    """The mean over all pairs of seeds of the correlation (Pearson) of the components of all blocks of all fields.

    A block counts by the bytes of its codes. None for one seed, or if a seed has the same number everywhere.

    Args:
        fields: as `deserved` returns them.
    """
    blocks = [block for of_field in fields.values() for block in of_field]
    numbers = np.array([block["components"] for block in blocks], np.float64).T  # (seeds, blocks)
    weights = np.array([block["rows"] * np.mean(block["bits"]) for block in blocks])
    if len(numbers) < 2 or not weights.any():
        return None
    off = numbers - (numbers @ weights / weights.sum())[:, None]
    covariance = (off * weights) @ off.T
    sd = np.sqrt(covariance.diagonal())
    if not sd.all():
        return None
    pairs = itertools.combinations(range(len(numbers)), 2)
    return float(np.mean([covariance[a, b] / (sd[a] * sd[b]) for a, b in pairs]))


def rounded(values: Sequence[int]) -> str:
    """The mean over seeds, with a decimal only where it matters."""
    mean = float(np.mean(values))
    return f"{mean:.0f}" if mean >= 10 or mean == round(mean) else f"{mean:.1f}"
