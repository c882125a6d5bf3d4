"""The engine that encodes, and the address of rows that only Spark reads: what is refused, and how."""

import json
import sys
from pathlib import Path

import pytest

from pipeline.encoding.encode import as_stream, encode
from pipeline.workflow.address import address_of
from pipeline.workflow.params import Encode
from tests.encoding import logs
from tests.project import Project

SPLIT = {"by": "random", "train": 0.7, "arch": 0.1, "val": 0.1, "test": 0.1}
OPTIONS = {"label": "clicked", "categorical": ["user"]}


@pytest.mark.parametrize("address", ["s3a://bucket/clicks//2026/*.parquet", "hdfs://node:8020/clicks", "file:///in"])
def test_an_address_passes_through_untouched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    Path("clicks.url").write_text(f"{address}\n")
    assert address_of(address) == address_of("clicks.url") == address
    assert address_of("data/clicks.csv") is None


@pytest.mark.parametrize("text", ["", "data/clicks.csv", "s3a://one\ns3a://two"])
def test_a_file_for_an_address_holds_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    Path("clicks.url").write_text(text)
    with pytest.raises(ValueError, match=r"clicks\.url.* must hold one address, such as s3a://"):
        address_of("clicks.url")


def test_ingest_leaves_rows_at_an_address_and_only_spark_encodes_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = {"name": "table", "path": "clicks.url", "options": OPTIONS}
    project = Project(tmp_path, dataset=dataset)
    (tmp_path / "clicks.url").write_text("s3a://bucket/clicks")
    with pytest.raises(ValueError, match=r"s3a://bucket/clicks is an address, which Spark reads; set encode.engine to"):
        project.run("check")
    project.give(encode__engine="spark").run("check", "ingest")
    assert "encode will read s3a://bucket/clicks where it lies" in capsys.readouterr().out
    raw = tmp_path / "artifacts" / "raw"
    assert [path.name for path in raw.iterdir()] == ["raw.json"]
    for read in (
        lambda: encode(raw, tmp_path / "out", Encode.model_validate({"split": SPLIT})),
        lambda: as_stream(raw),
    ):
        with pytest.raises(ValueError, match="s3a://bucket/clicks: is read by Spark alone"):
            read()


def test_a_missing_pyspark_is_named_with_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = {"address": "s3a://bucket/clicks", "dataset": "table", "options": OPTIONS, "sha256": "0"}
    (tmp_path / "raw.json").write_text(json.dumps(record))
    monkeypatch.setitem(sys.modules, "pyspark", None)
    with pytest.raises(ValueError, match=r"needs the package pyspark; install it with pip install -e \"\.\[spark\]\""):
        encode(tmp_path, tmp_path / "out", Encode.model_validate({"split": SPLIT, "engine": "spark"}))


def test_interactions_are_refused_before_spark_starts(tmp_path: Path) -> None:
    raw = logs.raw_log(tmp_path / "raw", {"user": ["a", "b"], "item": ["x", "y"]})
    with pytest.raises(ValueError, match=r"Spark encodes rows with labels only.*; set encode.engine to local"):
        encode(raw, tmp_path / "out", Encode.model_validate({"split": SPLIT, "engine": "spark"}))
