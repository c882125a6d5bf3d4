"""Paths of the outputs, relative to the repository in which a stage runs."""

from __future__ import annotations

import os
from pathlib import Path

CHECKED = Path("artifacts/checked.json")
RAW = Path("artifacts/raw")
ENCODED = Path("artifacts/encoded")
SCORES = Path("artifacts/search/scores.json")
TRAJECTORY = Path("artifacts/trajectory.parquet")
ALLOCATION = Path("artifacts/allocation.json")
CONTROLS = Path("artifacts/controls.json")
MODELS = Path("artifacts/models")
REPORT = Path("artifacts/report.json")
METRICS = Path("artifacts/metrics.json")
FIGURES = Path("artifacts/figures")
RUNS = Path("artifacts/runs")


def root() -> Path:
    """The absolute path of the repository itself, even while ``dvc exp run --temp`` works in a copy of it."""
    return Path(os.environ.get("DVC_ROOT", ".")).resolve()


def work(*parts: str) -> Path:
    """A path under ``.pipeline``, for checkpoints and other files that survive a kill and are no stage's outputs."""
    return root().joinpath(".pipeline", *parts)
