"""The stage that compares AutoEmb with fixed dimensions along a stream."""

import csv
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.project import Project

SETTINGS = {"dims": [1, 2], "seeds": [0, 1], "windows": 4, "batch_size": 100, "rows": 700}
MODELS = ["fixed 1", "fixed 2", "equal weights", "popularity rule", "joint", "AutoEmb", "AutoEmb, hard"]
SEEN = ["0 to 5", "6 to 20", "21 to 100", "> 100"]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Project:
    given = {f"stream__{name}": value for name, value in SETTINGS.items()}
    folder = tmp_path_factory.mktemp("stream")
    return Project(folder, dataset__options={"rows": 800}, **given).run("ingest", "stream")


def rows(project: Project, table: str, **values: str) -> list[dict[str, str]]:
    with (project.folder / f"artifacts/stream/{table}.csv").open() as file:
        return [row for row in csv.DictReader(file) if values.items() <= row.items()]


def mean(found: Sequence[dict[str, str]], metric: str) -> float:
    """Over the rows of the log that the lines of a table stand for; lines without rows have no figure."""
    counted = [row for row in found if row["rows"] != "0"]
    return float(np.average([float(row[metric]) for row in counted], weights=[int(row["rows"]) for row in counted]))


def test_every_model_is_measured_with_every_seed(compared: Project) -> None:
    table = rows(compared, "table")
    assert [(row["seed"], row["model"]) for row in table] == [(seed, model) for seed in "01" for model in MODELS]
    assert all(row["rows"] == "700" and 0 < float(row["auc"]) < 1 for row in table)
    size = {row["model"]: int(row["bytes"]) for row in table}
    assert size["fixed 1"] < size["AutoEmb, hard"] < size["AutoEmb"] and size["fixed 2"] < size["equal weights"]


def test_windows_cover_the_log_in_equal_parts(compared: Project) -> None:
    [whole] = rows(compared, "table", seed="0", model="AutoEmb")
    windows = rows(compared, "windows", seed="0", model="AutoEmb")
    assert [(row["window"], row["rows"]) for row in windows] == [(str(number), "175") for number in range(4)]
    assert mean(windows, "logloss") == pytest.approx(float(whole["logloss"]), rel=1e-4)


def test_rows_are_grouped_by_how_often_their_value_was_seen(compared: Project) -> None:
    [whole] = rows(compared, "table", seed="0", model="joint")
    found = rows(compared, "popularity", seed="0", model="joint")
    fields = dict.fromkeys(row["field"] for row in found)
    assert len(fields) == 2
    for field in fields:
        own = [row for row in found if row["field"] == field]
        assert [row["seen"] for row in own] == SEEN and sum(int(row["rows"]) for row in own) == 700
        assert mean(own, "logloss") == pytest.approx(float(whole["logloss"]), rel=1e-4)


def test_the_expected_dimension_lies_between_the_candidates(compared: Project) -> None:
    def expected(model: str) -> list[float]:
        return [float(row["expected_dim"]) for row in rows(compared, "dims", seed="1", model=model)]

    assert set(expected("fixed 2")) == {2.0} and set(expected("equal weights")) == {1.5}
    assert set(expected("popularity rule")) == set(expected("AutoEmb, hard")) | {2.0} == {1.0, 2.0}
    assert all(1 < value < 2 for value in expected("AutoEmb"))


def test_the_page_shows_the_means_of_every_model(compared: Project) -> None:
    page = (compared.folder / "artifacts/stream/table.md").read_text()
    for model in MODELS:
        auc = np.array([float(row["auc"]) for row in rows(compared, "table", model=model)])
        (shown,) = re.findall(rf"^\| {model} \| ([0-9.]+) ± ([0-9.]+) \|", page, re.MULTILINE)[:1]
        # The table has six digits of each figure, so the last of four may differ by rounding.
        assert [float(one) for one in shown] == pytest.approx([auc.mean(), auc.std(ddof=1)], abs=1.01e-4)


def test_candidates_out_of_order_are_refused_before_any_row_is_read(tmp_path: Path) -> None:
    project = Project(tmp_path, stream__dims=[4, 2])
    assert "params.yaml: stream: dims must be ascending, got [4, 2]" in project.error("stream")
    assert not (project.folder / "artifacts").exists()


def test_finished_passes_are_kept_when_a_stream_is_interrupted(
    compared: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = compared.copy(tmp_path)
    before, passes = project.files(), sorted((tmp_path / ".pipeline/stream").rglob("*.json"))
    assert len(passes) == 2 * 6  # AutoEmb is measured twice in one pass
    passes[3].unlink()
    shutil.rmtree(tmp_path / "artifacts/stream")
    capsys.readouterr()
    project.run("stream")
    assert "stream: 1 of 12 passes over 700 rows" in capsys.readouterr().out
    assert project.files() == before
    project.give(stream__seeds=[0, 1, 2]).run("stream")
    assert "stream: 6 of 18 passes over 700 rows" in capsys.readouterr().out
    project.give(stream__lr=0.02, stream__seeds=[0]).run("stream")
    assert "stream: 6 of 6 passes over 700 rows" in capsys.readouterr().out
