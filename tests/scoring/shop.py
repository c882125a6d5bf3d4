"""Models for retrieval that are trained on the log of a shop."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from tests.project import SMALL, Project

USERS, ITEMS = 40, 25


def shop() -> str:
    """A log in which users buy within their half of the items; the last users are new in the last rows."""
    rng = np.random.default_rng(0)
    lines = ["who;what;at"]
    for at in range(1500):
        user = rng.integers(USERS - 3) if at < 1450 else rng.integers(USERS)
        item = rng.integers(ITEMS // 2) * 2 + (user % 2 if rng.random() < 0.9 else 0)
        lines.append(f"u{user};{100 + item};{at}")
    return "\n".join(lines) + "\n"


def described(log: str) -> str:
    """The same log with a column ``kind`` that describes the items."""
    head, *lines = log.splitlines()
    return "\n".join([f"{head};kind", *(f"{line};k{int(line.split(';')[1]) % 5}" for line in lines)]) + "\n"


def trained(folder: Path, content: bool = False, **changes: object) -> Project:
    """All stages up to `retrain`; the rows are split by time, so the graph knows less than the log.

    Args:
        folder: of the project.
        content: whether the items have the field of `described`.
        changes: of the parameters.
    """
    (folder / "shop.csv").write_text(described(shop()) if content else shop())
    columns = {"user": "who", "item": "what"} | ({"items": ["kind"]} if content else {})
    options = {"interactions": columns, "time": "at", "delimiter": ";", "missing": ["", "?"]}
    if content:
        options["categorical"] = ["kind"]
    settings = {
        **SMALL,
        "dataset": {"name": "table", "path": "shop.csv", "options": options},
        "encode__split": {"by": "time", "train": 0.7, "arch": 0.1, "val": 0.1, "test": 0.1},
        "encode__history": 0,
        "task": {"name": "retrieval", "options": {"negatives": 20}},
        "backbone": {"name": "lightgcn", "options": {"layers": 2}},
        "dim": 8,
        "candidates": {"few": [2, 4, 8]},
        "search__candidates": "few",
        "retrain__seeds": [0],
    }
    with warnings.catch_warnings():  # a session's fixture does not see the marks of tests
        warnings.simplefilter("ignore")
        project = Project(folder, **(settings | changes))
        return project.run("ingest", "encode", "search", "derive", "retrain")
