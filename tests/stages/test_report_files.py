"""The files that `evaluate` writes: the same again from the same inputs, and complete even if a figure fails."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.reporting import figures
from tests.project import Project

TIMES = {"latency_ms", "resident_bytes", "seconds"}


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: timeless(of) for name, of in value.items() if name not in TIMES}
    return [timeless(of) for of in value] if isinstance(value, list) else value


def without_times(text: str) -> list[str]:
    """The lines of report.md; a cell of a table that holds milliseconds has two digits after the point."""
    return [re.sub(r"\| \d+\.\d\d(?= \|)", "| ms", line) for line in text.splitlines()]


def test_the_same_inputs_give_the_same_report_apart_from_times(finished: Project, tmp_path: Path) -> None:
    again = finished.copy(tmp_path).run("evaluate")
    assert timeless(again.read("report.json")) == timeless(finished.read("report.json"))
    one, other = ((project.folder / "artifacts/report.md").read_text() for project in (finished, again))
    assert without_times(one) == without_times(other)
    drawn = [name for name in finished.files() if name.startswith("artifacts/figures/")]
    assert len(drawn) == 8 and all(finished.files()[name] == again.files()[name] for name in drawn)
    page = (again.folder / "artifacts/report.html").read_text()
    assert page.count("<svg") == 4 and "planted rank" in page and "content key of evaluate" in page
    for name in re.findall(r"\]\((figures/\S+)\)", other):
        assert (again.folder / "artifacts" / name).is_file()


def test_a_figure_that_fails_costs_a_warning_and_its_place(
    finished: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(figures, "trajectories", lambda *_: 1 / 0)
    project = finished.copy(tmp_path).run("evaluate")
    assert "warning: the figure trajectories is left out: ZeroDivisionError" in capsys.readouterr().out
    shown = (tmp_path / "artifacts/report.md").read_text()
    assert "figures/objective_against_bytes.png" in shown and "trajectories" not in shown
    assert (tmp_path / "artifacts/report.html").read_text().count("<svg") == 3
    assert "artifacts/figures/trajectories.png" not in project.files()
