"""Results of all stages on a small table, in the folder of a `Project`; the cases damage copies of them."""

from __future__ import annotations

import datetime
import gzip
import importlib
import random
import shutil
import sys
import zipfile
from collections.abc import Set
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest

from pipeline.datasets import avazu
from pipeline.tracking.place import meeting_mlflow
from stages import search
from tests.project import Project

ROWS = 1500
OPTIONS = {"label": "clicked", "categorical": ["user", "item"], "numeric": ["price"], "bag": ["tags"], "time": "at"}
SMALL: dict[str, Any] = {
    "search__epochs": 1,
    "search__batch_size": 300,
    "search__checkpoint_seconds": 0.0,
    "retrain__epochs": 1,
    "retrain__batch_size": 300,
    "retrain__seeds": [0],
    "retrain__workers": 1,
}


def made(folder: Path, commands: Set[str]) -> Project:
    """The project of a click log: stages' results, models exported as trained, served and coded, and new rows.

    Args:
        folder: of the project.
        commands: that will read it.
    """
    lines = ["clicked,user,item,price,tags,at"]
    draw = np.random.default_rng(0)
    for row in range(ROWS):
        user, item, price = draw.integers(0, 30), draw.integers(0, 20), draw.integers(0, 99)
        tags = "|".join(f"t{tag}" for tag in draw.integers(0, 6, draw.integers(1, 4)))
        lines.append(f"{int(draw.random() < (0.8 if user % 2 else 0.2))},u{user},i{item},{price},{tags},{row // 3}")
    text = "\n".join(lines) + "\n"
    (folder / "clicks.csv").write_text(text)
    (folder / "clicks.csv.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    with zipfile.ZipFile(folder / "clicks.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("clicks.csv", text)
    pq.write_table(csv.read_csv(folder / "clicks.csv"), folder / "clicks.parquet", row_group_size=500)
    _of_publishers(folder)
    (folder / "new.csv").write_text("\n".join(line.partition(",")[2] for line in lines[:200]) + "\n")
    (folder / "params").mkdir()
    (folder / "params/own.yaml").write_text("search: {epochs: 3, lr: 0.02}\nretrain: {seeds: [0, 1]}\n")
    project = Project(folder, dataset={"name": "table", "path": "clicks.csv", "options": OPTIONS}, **SMALL)
    shutil.copy(folder / "params.yaml", folder / "params/kept.yaml")
    project.run("check", "ingest", "encode")
    with pytest.MonkeyPatch.context() as patch:  # the checkpoint of a search that was killed near its end
        patch.setattr(search, "discard", lambda _: None)
        project.run("search")
    project.run("derive", "retrain", *({"evaluate"} & commands))
    for words in (["searched", "served"], ["searched", "trained"], ["full", "served", "--budget", "0.3"]):
        called(project, "export", *_export(*words))
    if "synchronise" in commands:
        with meeting_mlflow():
            from mlflow import MlflowClient

            MlflowClient(f"sqlite:///{folder / 'mlflow.db'}").search_experiments()
    return project


def _of_publishers(folder: Path) -> None:
    """Some rows in the forms of Online Retail and Avazu."""
    draw = random.Random(0)
    names = ("InvoiceNo", "StockCode", "Description", "Quantity", "InvoiceDate", "UnitPrice", "CustomerID", "Country")
    book = openpyxl.Workbook()
    book.active.append(names)
    for row in range(300):
        moment = datetime.datetime(2010, 12, 1, 8, 26) + datetime.timedelta(hours=row)
        code, customer = f"{85000 + draw.randrange(20)}A", 17850 + draw.randrange(30)
        book.active.append([536365 + row // 3, code, f"item {code}", 2, moment, 2.55, customer, "France"])
    book.save(folder / "retail.xlsx")
    lines = [",".join(["id", "click", *avazu.FIELDS])]
    for row in range(300):
        values = {"hour": str(14102100 + row // 100)}
        fields = [values.get(name) or str(draw.randrange(9)) for name in avazu.FIELDS]
        lines.append(",".join([str(row), str(draw.randrange(2)), *fields]))
    with zipfile.ZipFile(folder / "avazu.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("avazu/train.csv", "\n".join(lines) + "\n")


def _export(name: str, form: str, *more: str) -> list[str]:
    out = "coded" if more else form
    return [f"artifacts/models/{name}/seed-0", out, "--format", form, *more]


def called(project: Project, stage: str, *words: str) -> None:
    """Run a command that takes arguments."""
    with project.inside() as patch:
        patch.setattr(sys, "argv", [stage, *words])
        importlib.import_module(f"stages.{stage}").run()
