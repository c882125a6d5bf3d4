"""The stages `ingest` and `encode`: what they make of a table, what they refuse, and that they need no torch."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.data.encoded import Encoded
from pipeline.data.schema import Schema
from pipeline.datasets import movielens_1m
from stages import ingest
from tests.encoding.logs import raw_log
from tests.project import ROOT, Project

SPLIT = {"by": "random", "train": 0.7, "arch": 0.1, "val": 0.1, "test": 0.1}
ENCODE = {"split": SPLIT, "min_count": None, "numeric": "log-square", "buckets": 20, "max_bag": None, "seed": 0}
OPTIONS = {"label": "y", "categorical": ["c"], "numeric": ["x"]}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project that has run nothing, with a small table as its data."""
    (tmp_path / "data").mkdir()
    rng = np.random.default_rng(0)
    lines = [f"{y},{c},{x}" for y, c, x in zip(*rng.integers(0, [[2], [20], [100]], (3, 600)), strict=True)]
    (tmp_path / "data" / "log.csv").write_text("\n".join(["y,c,x", *lines]))
    return Project(tmp_path, dataset={"name": "table", "path": "data", "options": OPTIONS}, encode=ENCODE)


def test_ingest_and_encode_end_to_end(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    project.run("ingest", "encode")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("ingest: 600 rows of table, 2 fields, mean label 0.")
    assert lines[1].startswith("encode: 600 rows (train ")
    assert [line.split()[0] for line in lines[2:5]] == ["field", "c", "x"]
    raw, artifacts = project.read("raw/raw.json"), project.folder / "artifacts"
    assert raw["dataset"] == "table"
    assert raw["sha256"] == hashlib.sha256((artifacts / "raw/table.parquet").read_bytes()).hexdigest()
    assert Schema.load(artifacts / "encoded/schema.json").names == ("c", "x")
    record = project.read("encoded/schema.json")
    for name, checksum in record["sha256"].items():
        assert hashlib.sha256((artifacts / "encoded" / name).read_bytes()).hexdigest() == checksum
    assert sum(record["rows"].values()) == 600


def test_ingest_of_interactions_has_no_label(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    (project.folder / "data/train.txt").write_text("0 1 2\n1 2\n")
    (project.folder / "data/test.txt").write_text("0 3\n1\n")
    project.give(dataset={"name": "interactions", "path": "data", "options": None}).run("ingest")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("ingest: 4 rows of interactions, 2 fields, interactions, ")
    assert lines[1] == "ingest: 1 lines of data/test.txt name a user without items; they give no rows"
    raw = project.read("raw/raw.json")
    assert raw["label"] is None and raw["interactions"]["keys"] == {"user": "user", "item": "item"}


def test_a_log_of_a_shop_is_ingested_and_encoded(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"{n},u{n % 9},i{n % 7},red mug {n % 7},{'view,' if n % 3 else f'buy,o{n}'}" for n in range(600)]
    rows += ["600,,i1,red mug,buy,o600", "601,u1,new,blue cup,buy,o601"]
    (project.folder / "data/log.csv").write_text("\n".join(["at,who,what,title,type,order", *rows]))
    shop = {"user": "who", "item": "what", "items": ["title"], "event": "type", "targets": ["buy"], "basket": "order"}
    options = {"interactions": shop, "bag": ["title"], "separator": " ", "time": "at"}
    project.give(dataset={"name": "table", "path": "data/log.csv", "options": options})
    split = {**SPLIT, "by": "time"}
    project.give(encode={**ENCODE, "split": split, "history": None}).run("ingest", "encode")
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("ingest: 601 rows of table, 3 fields, interactions, ")
    assert said[1] == "ingest: left out 1 rows without a value in 'who'"
    encoded = Encoded.load(project.folder / "artifacts/encoded")
    assert encoded.interactions is not None and encoded.interactions.columns.history == 20
    assert sum(project.read("encoded/schema.json")["rows"].values()) == 201
    assert encoded.interactions.counts[-1] == 0  # the new item is only in the last row


def test_ingest_and_encode_say_what_they_changed(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        f"{word},{' | '.join('abc'[: 1 + i % 3])},2024-01-0{1 + i % 9}" for i, word in enumerate(["Yes", "no"] * 90)
    ]
    (project.folder / "data/log.csv").write_text("\n".join(["y,tags,at", *lines]))
    options = {"label": "y", "bag": ["tags"], "dates": {"at": ["weekday"]}, "time": "at"}
    project.give(dataset__options=options, encode={**ENCODE, "max_bag": 2}).run("ingest", "encode")
    said = capsys.readouterr().out.splitlines()
    assert "ingest: label 'y': 90 rows 'Yes' -> 1, 90 rows 'no' -> 0" in said
    assert project.read("raw/raw.json")["notes"] == ["label 'y': 90 rows 'Yes' -> 1, 90 rows 'no' -> 0"]
    assert project.read("encoded/schema.json")["cut"] == {"tags": {"values": 60, "rows": 60}}
    assert any(line.startswith("encode: bag 'tags': cut 60 values of 60 rows") for line in said)
    assert Schema.load(project.folder / "artifacts/encoded/schema.json").names == ("tags", "at_weekday")


def test_encode_says_and_records_what_it_made_of_interactions(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = {
        "user": [f"u{row % 7}" for row in range(400)],
        "item": [f"i{row % 9 + 9 * (row >= 380)}" for row in range(400)],
        "event": ["return" if row % 10 == 0 else "purchase" for row in range(400)],
        "time": pa.array(range(400)),
    }
    raw_log(project.folder / "artifacts/raw", columns, targets=["purchase"])
    split = {**SPLIT, "by": "time"}
    project.give(encode={**ENCODE, "split": split, "history": 3}).run("encode")
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("encode: 360 rows (train 252, arch 36, val 36, test 36), 4 fields with ")
    assert said[1] == "encode: 7 users, 18 items, queries: train 252, arch 36, val 36, test 36"
    assert said[2] == "encode: 9 items have no training row; rows with such an item: val 0.0%, test 50.0%"
    assert "encode: histories of 3 interactions; queries without any: val 0.0%, test 0.0%" in said
    assert "encode: 40 rows of other types only stand in histories" in said
    assert "encode: warning: val has 36 queries, too few to judge by; give more rows" in said
    text = (project.folder / "artifacts/runs/encode.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    names = {line["id"]: line["names"] for line in lines if "id" in line}
    pairs = [zip(names[line[0]], line[2], strict=True) for line in lines if isinstance(line, list)]
    figures = {name: value for row in pairs for name, value in row}
    assert figures["users"] == 7 and figures["queries/test"] == 36 and figures["left_out/in_histories_only"] == 40
    assert Encoded.load(project.folder / "artifacts/encoded").interactions is not None


def test_ingest_and_encode_record_what_they_made_under_its_checksum(project: Project) -> None:
    project.run("ingest", "encode")
    sha256 = project.read("raw/raw.json")["sha256"]
    figures = {}
    for stage in ("ingest", "encode"):
        text = (project.folder / f"artifacts/runs/{stage}.jsonl").read_text()
        lines = [json.loads(line) for line in text.splitlines()]
        assert lines[0]["dataset"] == {"name": "table", "digest": sha256[:36], "source": "data"}
        names = {line["id"]: line["names"] for line in lines if "id" in line}
        rows = [zip(names[line[0]], line[2], strict=True) for line in lines if isinstance(line, list)]
        figures[stage] = {name: value for row in rows for name, value in row}
    assert figures["ingest"]["rows"] == 600
    encoded = project.read("encoded/schema.json")
    assert figures["encode"]["rows/train"] == encoded["rows"]["train"]
    assert figures["encode"]["cardinality/c"] == encoded["fields"][0]["cardinality"]
    about = encoded["summaries"]["c"]
    assert figures["encode"]["unknown/c/val"] == about["unknown"]["val"]
    assert figures["encode"]["auc_alone/c"] == about["auc_alone"] and figures["encode"]["values/c"] == about["values"]
    assert '"path": "artifacts/encoded/fields.csv"' in text


def test_a_run_of_ingest_is_known_by_what_it_made(project: Project) -> None:
    def journals() -> set[str]:
        return {path.name for path in (project.folder / ".pipeline/tracking").glob("ingest-*.jsonl")}

    project.run("ingest")
    first = journals()
    assert len(first) == 1
    assert project.run("ingest") and journals() == first
    (project.folder / "data/log.csv").write_text("y,c,x\n" + "1,2,3\n0,1,2\n" * 300)
    assert project.run("ingest") and len(journals()) == 2


def test_bad_input_leaves_nothing_new(project: Project) -> None:
    log = project.folder / "data/log.csv"
    before, held = project.run("ingest", "encode").files(), log.read_bytes()
    log.write_text("y,c,x\n" + "1,2,3\n0,1,2\n" * 100_000 + "1,2,three\n")
    assert project.error("ingest").startswith("data/log.csv, line 200002: column 'x' must be a number, got 'three'; ")
    log.write_bytes(held)
    message = project.give(encode={**ENCODE, "bucket": 3}).error("encode")
    assert "params.yaml: encode: there is no 'bucket' (did you mean 'buckets'?); valid are split, min_count" in message
    assert project.files() == before


def test_foreign_names_and_options_are_told(project: Project) -> None:
    message = project.give(dataset__name="nope").error("ingest")
    assert "there is no data set 'nope'; there are avazu, criteo, flights_3m, interactions, " in message
    wrong = {"label": "y", "categories": ["c"]}
    message = project.give(dataset__name="table", dataset__options=wrong).error("ingest")
    assert (
        "params.yaml: dataset.options: there is no 'categories' (did you mean 'categorical'?); valid are label, "
        in message
    )
    message = project.give(dataset__name="criteo", dataset__options={}).error("ingest")
    assert "no train.txt" in message and "in data; get the Criteo" in message
    assert not list((project.folder / "artifacts").glob("*"))


def test_what_is_not_here_is_downloaded_into_the_repository(
    project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path_factory.mktemp("publisher") / "ml-1m.zip"
    with zipfile.ZipFile(place, "w") as archive:
        archive.writestr("ml-1m/ratings.dat", "1::10::5::1\n1::10::1::2\n")
        archive.writestr("ml-1m/users.dat", "1::F::1::10::48067\n")
        archive.writestr("ml-1m/movies.dat", "10::A (2001)::Drama\n")
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=place.parent)
    server = http.server.HTTPServer(("127.0.0.1", 0), handler)
    serving = threading.Thread(target=server.handle_request)
    serving.start()
    url = f"http://127.0.0.1:{server.server_port}/ml-1m.zip"
    given = {"url": url, "md5": hashlib.md5(place.read_bytes()).hexdigest()}
    monkeypatch.setattr(movielens_1m, "DOWNLOAD", given)
    experiment = project.folder / ".dvc/tmp/exps/1"  # where DVC works on an experiment in a copy of the repository
    experiment.mkdir(parents=True)
    copied = Project(experiment, dataset={"name": "movielens_1m", "path": "data", "options": {}})
    with copied.inside() as patch:
        patch.setenv("DVC_ROOT", str(project.folder))
        ingest.run()
        assert copied.read("raw/raw.json")["rows"] == 2
        assert [path.name for path in (project.folder / ".pipeline/downloads").iterdir()] == ["ml-1m.zip"]
        serving.join()
        server.server_close()
        copied.give(dataset__path="typing-error")
        with pytest.raises(FileNotFoundError, match=r"there is no .*typing-error"):
            ingest.run()


@pytest.mark.parametrize("name", ["table", "nope"])
def test_the_data_stages_run_as_processes_without_torch(project: Project, name: str) -> None:
    program = (
        "import sys; from pipeline.workflow import process; from stages import ingest, encode; "
        "process.main(ingest.run); process.main(encode.run); "
        "sys.exit(3 if 'torch' in sys.modules or 'mlflow' in sys.modules else 0)"
    )
    project.give(dataset__name=name)
    environment = {**os.environ, "PIPELINE_TRACKING": "journal", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=project.folder, env=environment, capture_output=True, text=True)
    if name == "table":
        assert done.returncode == 0, done.stderr
    else:
        assert done.returncode == 1
        assert done.stderr.startswith("error: params.yaml: dataset.name: there is no data set 'nope'")
