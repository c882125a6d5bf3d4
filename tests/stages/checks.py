"""What every report must satisfy, and what a refused stage leaves."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from tests.project import Project

ALLOCATIONS = ("searched", "full", "uniform", "random")


def check_report(project: Project, controls: Sequence[str] = ALLOCATIONS[1:], **expected: Any) -> dict[str, Any]:
    """Check that report.json is consistent in itself, and that report.md shows its figures."""
    report: dict[str, Any] = project.read("report.json")
    assert {key: report[key] for key in expected} == expected
    assert list(report["allocations"]) == ["searched", *controls]
    full = report["allocations"]["full"]["bytes"]
    for entry in report["allocations"].values():
        _check_entry(project, entry, len(report["seeds"]), full)
    mean = {name: entry["metrics"]["auc"]["mean"] for name, entry in report["allocations"].items()}
    against = [compared["against"] for compared in report["comparisons"]]
    assert against[: len(controls)] == list(controls)
    assert set(against[len(controls) :]) <= {"full in int8", "uniform in int8", "full, coded"}
    for compared in report["comparisons"]:
        if compared["against"] in mean:
            assert compared["mean"] == pytest.approx(mean["searched"] - mean[compared["against"]])
        if compared["interval"] is None:
            assert len(report["seeds"]) == 1 or compared["mean"] == 0
            assert compared["covers"].startswith("no interval")
        else:
            low, high = compared["interval"]
            assert low <= compared["mean"] <= high and 0 <= compared["p_value"] <= 1
            assert compared["covers"] == "seeds and test rows"
    _check_curve(report, full)
    _check_forms(report)
    _check_text(project, report)
    return report


def _check_curve(report: dict[str, Any], full: int) -> None:
    """More bytes are never predicted to lose more, so sizes ascend; at the largest, next to nothing is lost."""
    points, of_full = report["curve"]["points"], report["curve"]["full"]
    sizes = [point["bytes"] for point in points]
    assert sizes == sorted(set(sizes)) and all(
        point["ratio"] == pytest.approx(point["bytes"] / full, abs=1 / full) for point in points
    )
    for part in ("val", "test"):
        assert points[-1][part]["values"] == pytest.approx(of_full[part]["values"], abs=0.005)
    assert of_full["test"]["values"] == report["allocations"]["full"]["metrics"]["auc"]["values"]


def _check_forms(report: dict[str, Any]) -> None:
    """The form to deploy is the smallest that is near to full on val; the figures of a form are those of its models."""
    forms = {form["name"]: form for form in report["forms"]}
    sizes = [form["bytes"] for form in report["forms"]]
    assert sizes == sorted(sizes) and set(report["allocations"]) <= set(forms)
    for name, entry in report["allocations"].items():
        assert forms[name]["test"]["values"] == entry["metrics"]["auc"]["values"]
        assert (forms[name]["bytes"], forms[name]["model_bytes"]) == (entry["bytes"], entry["model_bytes"])
        assert (f"{name} in int8" in forms) == ("int8" in entry["served"])
    assert forms["full"]["val"] == report["curve"]["full"]["val"]
    assert ("full, coded" in forms) == (report["curve"]["knee"] is not None)
    least = forms["full"]["val"]["mean"] - report["tolerance"]
    near = [name for name, form in forms.items() if form["val"]["mean"] > least and form["kind"] != "int4"]
    assert report["deploy"] == near[0] or forms[report["deploy"]]["bytes"] == forms[near[0]]["bytes"]


def _check_entry(project: Project, entry: dict[str, Any], seeds: int, full: int) -> None:
    fields = sorted(field["name"] for field in project.read("encoded/schema.json")["fields"])
    assert list(entry["metrics"]) == ["auc", "logloss", "calibration_error"]
    for metric in entry["metrics"].values():
        values = metric["values"]
        assert len(values) == seeds and metric["mean"] == pytest.approx(np.mean(values))
        assert metric["sd"] == (None if seeds == 1 else pytest.approx(np.std(values, ddof=1)))
    assert all(0 < value < 1 for value in entry["metrics"]["auc"]["values"])
    for dims in entry["dims"] if isinstance(entry["dims"], list) else [entry["dims"]]:
        assert sorted(dims) == fields
    assert entry["ratio"] == entry["bytes"] / full
    if entry["served"]:
        check_served(entry, full)
    if "float32" in entry["served"]:
        assert 0 < entry["table_params"] < entry["params"]
        assert entry["bytes"] >= 4 * entry["table_params"]


def check_served(entry: dict[str, Any], full: int) -> None:
    """Check the part of an allocation's entry that says how it is served."""
    assert list(entry["served"]) in (["float32", "int8"], ["coded"])
    for served in entry["served"].values():
        assert served["ratio"] == served["bytes"] / full
        assert ("bytes_values" in served) == ("bytes_values" in entry)
        lost = np.subtract(entry["metrics"]["auc"]["values"], served["metrics"]["auc"]["values"])
        assert served["objective_loss"] == pytest.approx(lost.mean(), abs=1e-12)
        assert served["metrics"]["logloss"]["mean"] == pytest.approx(np.mean(served["metrics"]["logloss"]["values"]))
        for time in served["latency_ms"].values():
            low, high = time["quartiles"]
            assert 0 < low <= time["median"] <= high
    exact, *rounded = entry["served"].values()
    assert exact["bytes"] == entry["bytes"] and exact.get("bytes_values") == entry.get("bytes_values")
    assert exact["largest_difference"] < 1e-4  # sums in another order
    assert exact["metrics"]["logloss"]["values"] == pytest.approx(entry["metrics"]["logloss"]["values"], abs=1e-5)
    for int8 in rounded:
        assert int8["bytes"] < exact["bytes"]
        assert exact["largest_difference"] < int8["largest_difference"] < 1


def _check_text(project: Project, report: dict[str, Any]) -> None:
    shown = (project.folder / "artifacts/report.md").read_text()
    assert shown.startswith("**Deploy " + report["deploy"])
    page = (project.folder / "artifacts/report.html").read_text()
    assert page.startswith("<!doctype html>") and not re.findall(r"""(?:src|href)=["'](?!data:|#)""", page)
    for name, entry in report["allocations"].items():
        size = f"| {entry['bytes']:,} | {entry['ratio']:.1%} | {entry['model_bytes']:,} |"
        assert f"| {name} | {entry['metrics']['auc']['mean']:.4f}" in shown
        if not entry["served"]:
            assert f"{size} – | – |" in shown
            continue
        exact, *rounded = (
            (" | ".join(f"{form['latency_ms'][batch]['median']:.2f}" for batch in ("1", "2000")), form)
            for form in entry["served"].values()
        )
        assert f"{size} {exact[0]} |" in shown
        for times, int8 in rounded:
            lost = f"{int8['objective_loss']:z.4f}"
            assert f"| {name} | {int8['bytes']:,} | {int8['ratio']:.1%} | {lost} | {times} |" in shown


@contextlib.contextmanager
def unharmed(project: Project) -> Iterator[None]:
    """Check that a refused stage leaves every output as it was and no draft; afterwards put the parameters back."""
    params, before = (project.folder / "params.yaml").read_bytes(), project.files()
    try:
        yield
        assert project.files() == before
    finally:
        (project.folder / "params.yaml").write_bytes(params)
