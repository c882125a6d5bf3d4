"""The trajectory of a search as a table with one row for each recorded step, field and candidate."""

from __future__ import annotations

import numpy as np
import pandas as pd

from pipeline.experiment.found import Found

PLOTTED_STEPS = 100


def long_form(found: Found) -> pd.DataFrame:
    """The columns ``step``, ``feature``, ``candidate_dim``, ``probability``, ``tau``; no rows without scores."""
    points, candidates = found.trajectory, found.candidates
    cells = [(f, n) for f, dims in enumerate(candidates) for n in range(len(dims))]
    fields, numbers = np.array([f for f, _ in cells]), np.array([n for _, n in cells])
    probabilities = [p.numpy()[fields, numbers] for _, _, p in points]
    return pd.DataFrame(
        {
            "step": np.repeat(np.array([step for step, _, _ in points], dtype=np.int64), len(cells)),
            "feature": np.tile(np.array(found.names, dtype=object)[fields], len(points)),
            "candidate_dim": np.tile([candidates[f][n] for f, n in cells], len(points)),
            "probability": np.concatenate(probabilities) if points else np.empty(0),
            "tau": np.repeat(np.array([tau for _, tau, _ in points]), len(cells)),
        }
    )


def thinned(table: pd.DataFrame) -> pd.DataFrame:
    """About `PLOTTED_STEPS` evenly spaced steps of `long_form`, the last one included, for DVC's plots."""
    steps = table.step.unique()
    every = max(1, len(steps) // PLOTTED_STEPS)
    shown = table[table.step.isin(steps[::-every])].rename(columns={"candidate_dim": "dimension"})
    return shown[["step", "feature", "dimension", "probability"]].round(4)
