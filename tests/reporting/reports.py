"""A small report.json for tests, and the forms that its verdict is made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.metrics.difference import difference
from pipeline.reporting.forms import CODED, INT8, TRAINED, Form, Quality, deploy, entries

FULL = 8000  # bytes of the full tables


def entry(dims: Any, aucs: list[float], size: int, **more: Any) -> dict[str, Any]:
    metrics = {
        "auc": {"mean": sum(aucs) / 2, "sd": 0.01, "values": aucs},
        "logloss": {"mean": 0.5, "sd": 0.02, "values": [0.48, 0.52]},
    }
    made = {"metrics": metrics, "dims": dims, "bytes": size, "ratio": size / FULL, "served": {}}
    return made | {"model_bytes": 3 * size, "bytes_per_field": None, **more}


def served(size: int, aucs: list[float], lost: float) -> dict[str, Any]:
    times = {"1": {"median": 0.25, "quartiles": [0.2, 0.3]}, "2000": {"median": 12.5, "quartiles": [12, 13]}}
    metrics = {"auc": {"mean": sum(aucs) / 2, "sd": 0.01, "values": aucs}}
    return {"metrics": metrics, "bytes": size, "ratio": size / FULL, "objective_loss": lost, "latency_ms": times}


def form(
    allocation: str, size: int, val: Sequence[float], test: Sequence[float], kind: str = TRAINED, **more: Any
) -> Form:
    """A form whose objective varies over 500 test rows as much as that of the others, each with its own rows."""
    rng = np.random.default_rng([len(allocation), size])
    made = Form(allocation, kind, **{"budget": 0.025 if kind == CODED else None, **more})
    for of_val, of_test in zip(val, test, strict=True):
        made.add(size, 3 * size, Quality(of_val, of_test, 0.02 * rng.normal(size=500)))
    return made


def judged(forms: Sequence[Form], tolerance: float = 0.0005, **changes: Any) -> dict[str, Any]:
    """A report of these forms, which include the searched one; ``changes`` replace entries of the report."""
    by_name = {one.name: one for one in forms}
    searched = by_name["searched"]
    listed = entries(forms, by_name.get("full"), FULL)
    dims: Mapping[str, Any] = {"searched": {"a": 1, "b": 2}, "full": {"a": 8, "b": 8}, "uniform": {"a": 2, "b": 2}}
    allocations = {
        one.allocation: entry(dims.get(one.allocation, {"a": 2, "b": 1}), one.test, one.bytes)
        for one in forms
        if one.kind == TRAINED
    }
    allocations["searched"]["bytes_per_field"] = {"a": searched.bytes // 5, "b": searched.bytes - searched.bytes // 5}
    return REPORT | {
        "seeds": list(range(len(searched.test))),
        "tolerance": tolerance,
        "allocations": allocations,
        "forms": listed,
        "deploy": deploy(listed, tolerance),
        "comparisons": [searched.compared(one) for one in forms if one.allocation != "searched"],
        **changes,
    }


DIMS = {"a": 1, "b": 2}
BOTH = {"float32": served(2000, [0.70, 0.72], 0.0), "int8": served(700, [0.69, 0.71], 0.01)}
FORMS = [
    form("searched", 2000, [0.71, 0.72], [0.70, 0.72]),
    form("searched", 700, [0.70, 0.71], [0.69, 0.71], INT8),
    form("full", 8000, [0.74, 0.75], [0.73, 0.75]),
    form("random", 2005, [0.69, 0.70], [0.68, 0.71]),
    form("full", 300, [0.7399, 0.7499], [0.73, 0.74], CODED),
]
REPORT: dict[str, Any] = {
    "dataset": "clicks",
    "backbone": "fm",
    "method": "autodim",
    "seeds": [3, 5],
    "metrics": {"auc": "AUC", "logloss": "logloss"},
    "objective": "auc",
    "test_rows": 500,
    "tolerance": 0.0005,
    "allocations": {
        "searched": entry(DIMS, [0.70, 0.72], 2000, served=BOTH, bytes_per_field={"a": 400, "b": 1600}),
        "full": entry({"a": 8, "b": 8}, [0.73, 0.75], 8000),
        "random": entry([{"a": 2, "b": 1}, {"a": 4, "b": 1}], [0.68, 0.71], 2005, bytes_values=[2000, 2010]),
    },
    "forms": entries(FORMS, FORMS[2], FULL),
    "deploy": "full, coded",
    "comparisons": [
        {"against": "full", **difference([0.70, 0.72], [0.73, 0.75], 1e-4, 500).to_dict(), "bytes_ratio": 0.25},
        {"against": "random", **difference([0.7], [0.68], 1e-4, 500).to_dict(), "bytes_ratio": 1.0},
    ],
    "scored": True,
    "undecided": [],
    "cardinality": {"a": 5, "b": 95},
}
