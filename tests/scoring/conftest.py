"""Trained models of a table with every kind of field, numbers in quantiles and by log-square, and missing values."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.project import SMALL, Project
from tests.scoring import shop

ROWS = 900
OPTIONS = {
    "label": "clicked",
    "positive": "yes",
    "categorical": ["user", "item"],
    "numeric": ["price", "share"],
    "bag": ["tags"],
    "time": "at",
    "separator": "/",
    "delimiter": ";",
    "missing": ["", "?"],
}


def lines(rows: int = ROWS) -> list[str]:
    """A header and rows of a click log in the order of time; users differ in how often they click."""
    rng = np.random.default_rng(0)
    made = ["clicked;at;event;user;item;price;share;tags"]
    for row in range(rows):
        user, item = rng.integers(0, 30), rng.integers(0, 20)
        price = "?" if rng.random() < 0.1 else f"{rng.integers(0, 500)}"
        share = "" if rng.random() < 0.1 else f"{rng.random():.3f}"
        tags = "/".join(f"t{tag}" for tag in rng.integers(0, 12, rng.integers(0, 5)))
        clicked = "yes" if rng.random() < (0.8 if user % 2 else 0.2) else "no"
        made.append(f"{clicked};{row};e{row};u{user};{'?' if item == 3 else 100 + item};{price};{share};{tags}")
    return made


def trained(folder: Path, text: Sequence[str] = (), **changes: Any) -> Project:
    """All stages up to `retrain`, on the click log or another text; its last rows are the test rows."""
    (folder / "clicks.csv").write_text("\n".join(text or lines()) + "\n")
    dataset = {"name": "table", "path": "clicks.csv", "options": OPTIONS}
    split = {"by": "time", "train": 0.7, "arch": 0.1, "val": 0.1, "test": 0.1}
    settings = {"dataset": dataset, **SMALL, "retrain__seeds": [0], "encode__max_bag": 3, "encode__split": split}
    with warnings.catch_warnings():  # a session's fixture does not see the marks of tests
        warnings.simplefilter("ignore")
        project = Project(folder, **settings | changes)
        return project.run("ingest", "encode", "search", "derive", "retrain")


@pytest.fixture(scope="session")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Models of mixed dimensions, with numbers in quantiles: only read from it."""
    return trained(tmp_path_factory.mktemp("mixed"), encode__numeric="quantiles", encode__buckets=8)


@pytest.fixture(scope="session")
def coded(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Coded models, with numbers by log-square and dense weights of few bits: only read from it."""
    return trained(tmp_path_factory.mktemp("coded"), method__name="coded", derive__budget=0.5, retrain__dense_bits=4)


@pytest.fixture(scope="session")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Models of a graph: only read from it."""
    return shop.trained(tmp_path_factory.mktemp("graph"))


@pytest.fixture(params=["mixed", "coded"])
def project(request: pytest.FixtureRequest) -> Project:
    made: Project = request.getfixturevalue(request.param)
    return made


def pruned(folder: Path) -> Project:
    """Models whose tables cannot be packed."""
    return trained(folder, method__name="magnitude", derive__budget=0.5)


def searched(project: Project) -> Path:
    """The folder of the searched model."""
    return project.folder / "artifacts/models/searched/seed-0"
