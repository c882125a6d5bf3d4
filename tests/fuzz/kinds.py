"""The kinds of files that the project reads: which command reads each, and how to tell that the command was right."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from tests.fuzz import commands, hostile
from tests.fuzz.damage import PLACES, Recipe, drawn

MODEL = "artifacts/models/full/seed-0"
Table = dict[str, list[Any]]


@dataclass(frozen=True)
class Kind:
    """Files that one command reads.

    Args:
        file: that is damaged, in the folder of the base; a pattern.
        stage: the command, a function of `tests.fuzz.commands` or a module of ``stages``.
        form: see `tests.fuzz.damage.drawn`.
        outputs: patterns of the files that show what the command made of its input.
        words: its arguments.
        changes: of the parameters.
        meaning: content -> what it says, where nothing tells a changed file from an intended one, e.g. a text that
            people edit; None for a file with a checksum, which must be refused unless the results stay the same.
        read: folder, path -> the columns that a command that ingests the file should find; by another reader.
        made: damage that is made for this kind, by name.
        pair: name of a file that must agree with this one, and that an error may name instead.
        warns: whether the command may go on without a file that it names in a warning.
    """

    file: str
    stage: str
    form: str
    outputs: tuple[str, ...]
    words: tuple[str, ...] = ()
    changes: Mapping[str, Any] = field(default_factory=dict)
    meaning: Callable[[bytes], Any] | None = None
    read: Callable[[Path], Table] | None = None
    made: Mapping[str, Callable[[Path], None]] = field(default_factory=dict)
    pair: str = ""
    warns: bool = False

    def recipes(self) -> list[Recipe]:
        """Those that are not drawn: what is made for this kind, something else than a file, no bytes, only zeros."""
        made = [["made", name] for name in self.made]
        return [*made, *([name] for name in PLACES), ["cut", 0.0], ["zeros", 0.0, 1 << 24]]

    def draw(self, content: bytes, seed: str) -> Recipe:
        return drawn(random.Random(seed), content, self.form)


def _columns(rows: list[dict[str, Any]]) -> Table:
    """What ``ingest`` should make of rows with the columns of `tests.fuzz.base`, whose values are texts or None."""
    return {
        "label": [{"0": 0, "1": 1, "false": 0, "true": 1, "no": 0, "yes": 1}[row["clicked"].lower()] for row in rows],
        "time": [int(row["at"]) for row in rows],
        "user": [row["user"] for row in rows],
        "item": [row["item"] for row in rows],
        "price": [None if row["price"] is None else float(row["price"]) for row in rows],
        "tags": [None if row["tags"] is None else [t.strip() for t in row["tags"].split("|")] for row in rows],
    }


def _read_text(path: Path) -> Table:
    content = path.read_bytes()
    if content[:2] == b"PK":
        import zipfile

        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            content = archive.read(archive.namelist()[0])
    elif content[:2] == b"\x1f\x8b":
        import gzip

        content = gzip.decompress(content)
    csv.field_size_limit(1 << 30)
    head, *lines = [line for line in csv.reader(io.StringIO(content.decode("utf-8-sig"), newline="")) if line]
    names = [name.strip() for name in head]
    rows = [{name: value.strip() or None for name, value in zip(names, line, strict=True)} for line in lines]
    return _columns(rows)


def _read_parquet(path: Path) -> Table:
    columns = ["clicked", "user", "item", "price", "tags", "at"]
    table = pq.ParquetFile(path).read(columns=columns, use_threads=False)
    texts = [{k: None if v is None else str(v) for k, v in row.items()} for row in table.to_pylist()]
    return _columns(texts)


def ingested(folder: Path) -> Table:
    """The columns of the raw table in a folder, as `Kind.read` gives them."""
    table: pa.Table = pq.read_table(folder / "artifacts/raw/table.parquet", use_threads=False)
    columns: Table = {name: table[name].to_pylist() for name in table.schema.names}
    columns["price"] = [None if value is None else float(value) for value in columns["price"]]
    columns["tags"] = [value or None for value in columns["tags"]]
    return columns


def _raw(file: str, form: str, read: Callable[[Path], Table], made: Mapping[str, Callable[[Path], None]]) -> Kind:
    return Kind(file, "ingest", form, ("artifacts/raw/*",), changes={"dataset__path": file}, read=read, made=made)


def _published(file: str, name: str, made: Mapping[str, Callable[[Path], None]]) -> Kind:
    dataset = {"dataset__path": file, "dataset__name": name, "dataset__options": {}}
    return Kind(file, "ingest", "bytes", ("artifacts/raw/*",), changes=dataset, meaning=bytes, made=made)


def _scored(model: str, name: str, form: str, *, says: bool = False) -> Kind:
    words, meaning = (model, "new.csv", "out.csv"), json.loads if says else None
    pair = "allocation.json" if name == "model.json" else ""
    return Kind(f"{model}/{name}", "score", form, ("out.csv",), words, meaning=meaning, pair=pair)


def _lines(content: bytes) -> Any:
    return [json.loads(line) for line in content.splitlines()]


TESTED = ("artifacts/metrics.json",)
SEARCHED, RETRAINED = ("artifacts/search/*",), ("artifacts/models/*/*/*.safetensors",)
DERIVED = ("artifacts/allocation.json", "artifacts/controls.json")
ENCODED = ("artifacts/encoded/**/*.npy",)
SCORED = ("served", "new.csv", "out.csv")

KINDS: dict[str, Kind] = {
    "csv": _raw("clicks.csv", "bytes", _read_text, hostile.TEXT),
    "gzip": _raw("clicks.csv.gz", "bytes", _read_text, {**hostile.TEXT, **hostile.GZIP}),
    "zip": _raw("clicks.zip", "bytes", _read_text, {**hostile.TEXT, **hostile.ZIP}),
    "parquet": _raw("clicks.parquet", "bytes", _read_parquet, hostile.PARQUET),
    "workbook": _published("retail.xlsx", "online_retail", hostile.WORKBOOK),
    "zip of Avazu": _published("avazu.zip", "avazu", {}),
    "csv to describe": Kind(
        "clicks.csv",
        "describe",
        "bytes",
        ("params/clicks.yaml",),
        ("clicks.csv",),
        meaning=bytes,
        made=hostile.TEXT,
        pair="--label",
    ),
    "raw.json": Kind("artifacts/raw/raw.json", "encode", "json", ENCODED, meaning=json.loads),
    "raw table": Kind("artifacts/raw/table.parquet", "encode", "bytes", ENCODED),
    "schema.json": Kind("artifacts/encoded/schema.json", "search", "json", SEARCHED, meaning=json.loads),
    "schema.json of derive": Kind(
        "artifacts/encoded/schema.json", "derive", "json", DERIVED, meaning=json.loads, pair="scores.json"
    ),
    "ids": Kind("artifacts/encoded/train/ids.npy", "search", "npy", SEARCHED),
    "labels": Kind("artifacts/encoded/val/labels.npy", "search", "npy", SEARCHED),
    "test ids": Kind("artifacts/encoded/test/ids.npy", "evaluate", "npy", TESTED),
    "checkpoint": Kind(".pipeline/ckpt/search/*/search.ckpt", "search", "bytes", SEARCHED),
    "scores.json": Kind("artifacts/search/scores.json", "derive", "json", DERIVED, meaning=json.loads),
    "allocation.json": Kind("artifacts/allocation.json", "retrain", "json", RETRAINED, meaning=json.loads),
    "controls.json": Kind("artifacts/controls.json", "retrain", "json", RETRAINED, meaning=json.loads),
    "history.json": Kind(f"{MODEL}/history.json", "evaluate", "json", TESTED, meaning=json.loads),
    "trajectory": Kind("artifacts/trajectory.parquet", "evaluate", "bytes", TESTED),
    "model.json": _scored("trained", "model.json", "json", says=True),
    "allocation of a model": _scored("trained", "allocation.json", "json", says=True),
    "weights": _scored("trained", "model.safetensors", "safetensors"),
    "served weights": _scored("served", "model.safetensors", "safetensors"),
    "coded weights": _scored("coded", "model.safetensors", "safetensors"),
    "served model.json": _scored("served", "model.json", "json", says=True),
    "schema.json of a model": _scored("served", "encoding/schema.json", "json"),
    "vocabulary": _scored("served", "encoding/vocabulary.parquet", "bytes"),
    "weights of evaluate": Kind(f"{MODEL}/model.safetensors", "evaluate", "safetensors", TESTED),
    "new rows": Kind("new.csv", "score", "bytes", ("out.csv",), SCORED, meaning=bytes),
    "params.yaml": Kind("params.yaml", "check", "yaml", ("params.yaml",), meaning=yaml.safe_load),
    "params/own.yaml": Kind("params/own.yaml", "settings", "yaml", ("params.yaml",), meaning=bytes),
    "journal to go on with": Kind(".pipeline/tracking/derive-*.jsonl", "derive", "lines", DERIVED, warns=True),
    "journal to be synchronised": Kind(
        str(commands.JOURNAL), "synchronise", "lines", (str(commands.SYNCHRONISED),), meaning=_lines, warns=True
    ),
}
