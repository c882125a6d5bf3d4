"""What the stages record of their runs."""

import contextlib
import json
import sqlite3
import subprocess
import sys
from pathlib import Path

from pipeline.tracking.sync import synchronise
from tests.project import Project


def test_runs_are_journaled_by_default_and_brought_to_the_store(
    planted: Project, migrated: Path, tmp_path: Path
) -> None:
    project = planted.copy(tmp_path).give(search__epochs=1)
    with project.inside() as patch:
        patch.delenv("PIPELINE_TRACKING")
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        (tmp_path / "mlflow.db").write_bytes(migrated.read_bytes())
        done = subprocess.run([sys.executable, "-m", "stages.search"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        synchronise(tmp_path)  # it may have arrived already
    assert (tmp_path / "artifacts/runs/search.jsonl").stat().st_size > 0
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as store:
        runs = dict(store.execute("select name, status from runs"))
        logged = {key for (key,) in store.execute("select distinct key from metrics")}
    assert {"ingest", "encode", "search/seed-0"} <= set(runs) and set(runs.values()) == {"FINISHED"}
    assert {"val/auc", "p/user/8", "expected_bytes"} <= logged


def test_the_journal_alone_touches_no_store(finished: Project) -> None:
    runs = {path.stem for path in (finished.folder / "artifacts/runs").iterdir()}
    assert {"search", "retrain", "evaluate"} <= runs
    assert not (finished.folder / "mlflow.db").exists()


def test_every_evaluation_is_recorded_in_both_forms(finished: Project) -> None:
    lines = (finished.folder / "artifacts/runs/evaluate.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    names = {record["id"]: record["names"] for record in records if "id" in record}
    runs = [dict(zip(names[line[0]], line[2], strict=True)) for line in records if isinstance(line, list)]
    expected = [
        {"test/auc": auc, "test/int8_auc": int8_auc, "int8_bytes": size}
        for entry in finished.read("report.json")["allocations"].values()
        for int8 in [entry["served"]["int8"]]
        for auc, int8_auc, size in zip(
            entry["metrics"]["auc"]["values"],
            int8["metrics"]["auc"]["values"],
            int8.get("bytes_values", [int8["bytes"]] * 2),
            strict=True,
        )
    ]
    assert [{key: run[key] for key in expected[0]} for run in runs] == expected
