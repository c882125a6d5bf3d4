"""A cell of a study of agents on two pages: worlds, logs and agents of its section ``chain``, and its tables."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from pipeline.chain import report
from pipeline.chain.compare import SAME, Pass, Row, Scene, passes
from pipeline.reporting.text import Table
from pipeline.studies.frames import Result
from pipeline.studies.grid import AGENTS, Cell, Study
from pipeline.training.weights import Record
from pipeline.workflow.outputs import read_json, write_json

OBJECTIVE = "reward"
METRICS = {OBJECTIVE: "reward per session", "reward_test": "other users", "reward_shifted": "other users and answers"}


def is_chain(study: Study) -> bool:
    """Whether the cells of a study are comparisons of agents, so that these are its tables."""
    return all(AGENTS in cell.entry.arms for cell in study.cells())


def run(cell: Cell, folder: Path, work: Path, opened: Callable[[str, int], Record]) -> dict[str, Any]:
    """All passes of a cell, or the rest of them.

    Args:
        cell: with the arm ``agents``.
        folder: its encoded data, for worlds whose users are those of the data.
        work: folder of finished passes and checkpoints.
        opened: opens the run of a name and a seed, and returns what records there.

    Returns:
        ``rows``, one for each pass, and ``sessions``: the rows of `Scene.run`, of `Scene.quality` and of the bounds.
    """
    settings = cell.params.chain.model_copy(update={"seeds": cell.seeds})
    users = str(folder) if settings.users == "encoded" else None
    rows: list[dict[str, Any]] = []
    found: dict[str, list[Row]] = {"rows": [], "qualities": [], "bounds": []}
    for name in settings.worlds:
        for seed in settings.seeds:
            scene = Scene(settings, name, seed, users, work / name / f"seed-{seed}")
            for one in passes(settings):
                kept = _done(scene, one, opened)
                found["rows"] += kept["rows"]
                if kept["quality"] not in found["qualities"]:
                    found["qualities"].append(kept["quality"])
                rows.append(_row(seed, one, kept))
            place = {"world": name, "seed": seed}
            found["bounds"] += [{**place, "policy": key, "reward": value} for key, value in scene.bounds().items()]
    return {"rows": rows, "sessions": found}


def _done(scene: Scene, one: Pass, opened: Callable[[str, int], Record]) -> dict[str, Any]:
    """The result of a pass, which is kept."""
    file = scene.work / f"{one.policy}-{one.transitions}.json"
    if not file.exists():
        began, name = time.monotonic(), f"{scene.name}/{one.policy}-{one.transitions}"
        record = opened(name, scene.seed)
        rows = scene.run(one, record)
        for row in rows:
            record(one.transitions, (f"{row['test']}/{OBJECTIVE}",), (row[OBJECTIVE],))
        quality = scene.quality(one.transitions, record)
        seconds = time.monotonic() - began
        write_json(file, {"rows": rows, "quality": quality, "seconds": seconds, "run": f"{name}/seed-{scene.seed}"})
    kept: dict[str, Any] = read_json(file)
    return kept


def _row(seed: int, one: Pass, kept: dict[str, Any]) -> dict[str, Any]:
    """A pass as `pipeline.studies.cell.run` has the rows of models. It has no tables, and thus no bytes."""
    rewards = {("" if row["test"] == SAME else f"_{row['test']}"): row["reward"] for row in kept["rows"]}
    return {
        **{"seed": seed, "arm": f"{one.policy}, {one.transitions:,} transitions", "budget": None, "dims": {}},
        **dict.fromkeys(("bytes", "of_full", "model_bytes", "table_params", "training_bytes", "search_seconds")),
        **{"metrics": {f"{OBJECTIVE}{test}": value for test, value in rewards.items()}, "validation": None},
        **{"epochs": 0, "seconds": kept["seconds"], "setting": 0, "run": kept["run"]},
    }


def frames(result: Result) -> report.Frames:
    """What a cell has measured."""
    found = result["sessions"]
    bounds = pd.DataFrame(found["bounds"], columns=["world", "seed", "policy", "reward"])
    return report.Frames(pd.DataFrame(found["rows"]), pd.DataFrame(found["qualities"]), bounds)


def tables(results: Sequence[Result]) -> list[Table]:
    """The tables of all cells; titles begin with the name of the cell."""
    made = []
    for result in results:
        for table in report.tables(frames(result)):
            made.append(Table(f"{_name(result)}, {table.title}", table.head, table.rows, table.note))
    return made


def figures(results: Sequence[Result]) -> dict[str, partial[Figure]]:
    """What draws the figures of all cells, by the name of the file."""
    return {
        f"{name}-{_name(result)}": draw for result in results for name, draw in report.drawings(frames(result)).items()
    }


def _name(result: Result) -> str:
    return str(result["keys"]["chain"])
