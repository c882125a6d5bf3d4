import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipeline.data.schema import Schema
from pipeline.datasets import movielens_1m
from stages import encode, ingest

ROOT = Path(__file__).parents[1]
STAGES = {"stages": {"ingest": {"params": ["dataset"], "deps": []}, "encode": {"params": ["encode"], "deps": []}}}
SPLIT = {"by": "random", "train": 0.7, "arch": 0.1, "val": 0.1, "test": 0.1}
PARAMS = {
    "dataset": {"name": "table", "path": "data", "options": {"label": "y", "categorical": ["c"], "numeric": ["x"]}},
    "encode": {"split": SPLIT, "min_count": None, "numeric": "log-square", "buckets": 20, "max_bag": None, "seed": 0},
    "method": {"name": "autodim"},
    "backbone": {"name": "deepfm"},
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project folder to work in, with a small table as its data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setenv("PIPELINE_TRACKING", "journal")
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump(STAGES))
    (tmp_path / "data").mkdir()
    rng = np.random.default_rng(0)
    lines = [f"{y},{c},{x}" for y, c, x in zip(*rng.integers(0, [[2], [20], [100]], (3, 600)), strict=True)]
    (tmp_path / "data" / "log.csv").write_text("\n".join(["y,c,x", *lines]))
    give(tmp_path)
    return tmp_path


def give(folder, **dataset):
    (folder / "params.yaml").write_text(yaml.safe_dump({**PARAMS, "dataset": {**PARAMS["dataset"], **dataset}}))


def test_ingest_and_encode_end_to_end(project, capsys):
    ingest.run()
    encode.run()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("ingest: 600 rows of table, 2 fields, label rate 0.")
    assert lines[1].startswith("encode: 600 rows (train ")
    raw = json.loads((project / "artifacts/raw/raw.json").read_text())
    assert raw["dataset"] == "table"
    assert raw["sha256"] == hashlib.sha256((project / "artifacts/raw/table.parquet").read_bytes()).hexdigest()
    assert Schema.load(project / "artifacts/encoded/schema.json").names == ("c", "x")
    record = json.loads((project / "artifacts/encoded/schema.json").read_text())
    for name, checksum in record["sha256"].items():
        assert hashlib.sha256((project / "artifacts/encoded" / name).read_bytes()).hexdigest() == checksum
    assert sum(record["rows"].values()) == 600


def test_ingest_and_encode_record_what_they_made_under_its_checksum(project):
    ingest.run()
    encode.run()
    sha256 = json.loads((project / "artifacts/raw/raw.json").read_text())["sha256"]
    figures = {}
    for stage in ("ingest", "encode"):
        lines = [json.loads(line) for line in (project / f"artifacts/runs/{stage}.jsonl").read_text().splitlines()]
        assert lines[0]["dataset"] == {"name": "table", "digest": sha256[:36], "source": "data"}
        names = {line["id"]: line["names"] for line in lines if "id" in line}
        rows = [zip(names[line[0]], line[2], strict=True) for line in lines if isinstance(line, list)]
        figures[stage] = {name: value for row in rows for name, value in row}
    assert figures["ingest"]["rows"] == 600
    encoded = json.loads((project / "artifacts/encoded/schema.json").read_text())
    assert figures["encode"]["rows/train"] == encoded["rows"]["train"]
    assert figures["encode"]["cardinality/c"] == encoded["fields"][0]["cardinality"]
    keys = {path.name for path in (project / ".pipeline/tracking").glob("*.jsonl")}
    ingest.run()
    assert {path.name for path in (project / ".pipeline/tracking").glob("*.jsonl")} == keys
    (project / "data/log.csv").write_text("y,c,x\n" + "1,2,3\n0,1,2\n" * 300)
    ingest.run()
    assert len(list((project / ".pipeline/tracking").glob("ingest-*.jsonl"))) == 2


def test_bad_input_leaves_nothing_new(project):
    ingest.run()
    encode.run()
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    (project / "data/log.csv").write_text("y,c,x\n" + "1,2,3\n0,1,2\n" * 100_000 + "1,2,three\n")
    with pytest.raises(ValueError, match=r"^data/log.csv, line 200002: column 'x' must be a number, found 'three'"):
        ingest.run()
    (project / "data/log.csv").write_bytes(before[project / "data/log.csv"])
    (project / "params.yaml").write_text(yaml.safe_dump({**PARAMS, "encode": {**PARAMS["encode"], "bucket": 3}}))
    with pytest.raises(ValueError, match=r"encode in params.yaml: no option 'bucket'; valid are split, min_count, "):
        encode.run()
    (project / "params.yaml").write_bytes(before[project / "params.yaml"])
    assert {path: path.read_bytes() for path in project.rglob("*") if path.is_file()} == before


def test_foreign_names_and_options_are_told(project):
    give(project, name="nope")
    with pytest.raises(ValueError, match="no 'nope' in pipeline/datasets; there are avazu, criteo, movielens_100k"):
        ingest.run()
    give(project, options={"label": "y", "categories": ["c"]})
    with pytest.raises(
        ValueError, match=r"dataset.options in params.yaml: no option 'categories'; valid are label, cat"
    ):
        ingest.run()
    give(project, name="criteo", options={})
    with pytest.raises(FileNotFoundError, match=r"no train.txt .* in data; get the Criteo"):
        ingest.run()
    assert not (project / "artifacts").exists() or not list((project / "artifacts").iterdir())


def test_what_is_not_here_is_downloaded_into_the_repository(project, monkeypatch, tmp_path_factory):
    place = tmp_path_factory.mktemp("publisher") / "ml-1m.zip"
    with zipfile.ZipFile(place, "w") as archive:
        archive.writestr("ml-1m/ratings.dat", "1::10::5::1\n1::10::1::2\n")
        archive.writestr("ml-1m/users.dat", "1::F::1::10::48067\n")
        archive.writestr("ml-1m/movies.dat", "10::A (2001)::Drama\n")
    given = {"url": place.as_uri(), "md5": hashlib.md5(place.read_bytes()).hexdigest()}
    monkeypatch.setattr(movielens_1m, "DOWNLOAD", given)
    monkeypatch.setenv("DVC_ROOT", str(project))
    copy = project / ".dvc/tmp/exps/1"  # where an experiment in a copy of the repository would work
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    for name in ("dvc.yaml", "params.yaml"):
        (copy / name).write_bytes((project / name).read_bytes())
    give(copy, name="movielens-1m", options={})
    ingest.run()
    assert json.loads((copy / "artifacts/raw/raw.json").read_text())["rows"] == 2
    assert [path.name for path in (project / ".pipeline/downloads").iterdir()] == ["ml-1m.zip"]
    give(copy, name="movielens-1m", options={}, path="typing-error")
    with pytest.raises(FileNotFoundError, match=r"there is no .*typing-error"):
        ingest.run()


def test_the_stages_run_as_processes_without_torch(project):
    program = (
        "import sys; from stages import _stage, ingest, encode; "
        "_stage.main(ingest.run); _stage.main(encode.run); "
        "sys.exit(3 if 'torch' in sys.modules or 'mlflow' in sys.modules else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    give(project, name="nope")
    done = subprocess.run(
        [sys.executable, "-m", "stages.ingest"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: no 'nope' in pipeline/datasets")
