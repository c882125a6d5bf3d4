"""A small experiment, on rows that are made where the test runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.encoded import Encoded
from pipeline.experiment.experiment import Experiment
from pipeline.workflow.params import Params
from pipeline.workflow.validation import validated
from pipeline.workflow.yaml_values import read_yaml
from tests.project import ROOT
from tests.training.clicks import SCHEMA, clicks

ROWS = {"train": 400, "arch": 100, "val": 150, "test": 100}
CHANGES: dict[str, Any] = {
    "dim": 4,
    "candidates": {"few": [1, 2, 4]},
    "search": {"candidates": "few", "batch_size": 100, "epochs": 2},
    "retrain": {"batch_size": 100, "epochs": 3, "patience": None},
    "backbone": {"name": "fm"},
}


def write_rows(folder: Path) -> Path:
    """What `encode` would write."""
    labels = {}
    for seed, (part, number) in enumerate(ROWS.items()):
        split = clicks(number, seed)
        (folder / part).mkdir(parents=True)
        np.save(folder / part / "ids.npy", split.ids[0])
        np.save(folder / part / "labels.npy", split.labels[0])
        labels[part] = {"rows": number, "mean": float(split.labels[0].mean()), "least": 0, "most": 1, "binary": True}
    (folder / "schema.json").write_text(json.dumps({**SCHEMA.to_dict(), "labels": labels, "raw_sha256": "0"}))
    return folder


def experiment(folder: Path, **changes: Any) -> Experiment:
    """The repository's params.yaml with `CHANGES`, and with others by section."""
    values = read_yaml(ROOT / "params.yaml")
    for change in (CHANGES, changes):
        for section, value in change.items():
            values[section] = {**values[section], **value} if isinstance(value, dict) else value
    return Experiment(validated(Params, values, "params.yaml"), Encoded.load(folder))
