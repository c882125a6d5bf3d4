"""What schema.json says of an encoding, whatever the rows are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.workflow.params import Encode

MIN_COUNT = 2  # the default if neither the settings nor the data set have a value; MAX_BAG likewise
MAX_BAG = 8


@dataclass(frozen=True)
class Limits:
    """The least number of training rows of a value with an id, and the most values of a bag."""

    min_count: int
    max_bag: int

    @classmethod
    def of(cls, settings: Encode, defaults: Mapping[str, int]) -> Limits:
        """Those of the settings, else the data set's defaults, else those of this module."""
        return cls(
            settings.min_count or defaults.get("min_count", MIN_COUNT),
            settings.max_bag or defaults.get("max_bag", MAX_BAG),
        )


def encoding_record(
    raw: Mapping[str, Any], settings: Encode, limits: Limits, kinds: Mapping[str, str], edges: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """The entries of schema.json on where the rows are from, after their raw.json, and on how they were encoded."""
    return {
        "raw_sha256": raw["sha256"],
        "dataset": raw.get("dataset"),
        "options": raw.get("options", {}),
        "kinds": dict(kinds),
        "seed": settings.seed,
        "min_count": limits.min_count,
        "max_bag": limits.max_bag,
        "numeric": settings.numeric,
        "edges": {name: list(map(float, its)) for name, its in edges.items()},
        "facts": raw["facts"],
    }
