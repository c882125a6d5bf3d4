"""A cell of a study of agents on two pages: worlds, logs and agents of its section ``chain``, and its tables."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pipeline.chain import report
from pipeline.chain.compare import SAME, Pass, Row, Scene, passes
from pipeline.chain.tables import item_bytes, item_vectors
from pipeline.data.encoded import Encoded
from pipeline.metrics.difference import SEEDS_ALONE, difference
from pipeline.models.model import Model
from pipeline.models.retriever import AnyModel
from pipeline.reporting.text import Table, mean_sd, with_interval
from pipeline.studies.comparisons import budget_text
from pipeline.studies.frames import Result
from pipeline.studies.grid import AGENTS, Cell, Study
from pipeline.training.weights import Record, nowhere
from pipeline.workflow.outputs import read_json, write_json
from pipeline.workflow.places import root

OBJECTIVE = "reward"
METRICS = {OBJECTIVE: "reward per session", "reward_test": "other users", "reward_shifted": "other users and answers"}

PLAYED = {name: f"reward, {title}" if name != OBJECTIVE else title for name, title in METRICS.items()}
PLAYER = "deepchain"  # who plays with the tables of a study on bytes


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


def rewards(cell: Cell, data: Encoded, model: AnyModel, seed: int, work: Path) -> dict[str, Any]:
    """What DeepChain earns whose items are the item table of a trained behaviour model, frozen.

    The world is that of the cell's data, with the users of ``seed``. The behaviour model of the targets is learned anew
    on the same table, from as many transitions as ``chain.transitions`` says.

    Args:
        cell: of the data set ``sessions``.
        data: its encoded data.
        model: trained on them.
        seed: of users, log and agents.
        work: folder of checkpoints, which is removed at the end.

    Returns:
        ``metrics``, see `PLAYED`; and ``item_bytes``, see `pipeline.chain.tables.item_bytes`.
    """
    assert isinstance(model, Model)
    options, settings = cell.params.dataset.options or {}, cell.params.chain
    world = options.get("world", "tabular")
    settings = settings.model_copy(update={"options": {world: options.get("options")}})
    scene = Scene(settings, world, seed, str(root() / cell.params.dataset.path), work, item_vectors(model, data))
    played = scene.run(Pass(settings.transitions[-1], PLAYER), nowhere)
    shutil.rmtree(work, ignore_errors=True)
    found = {OBJECTIVE if row["test"] == SAME else f"{OBJECTIVE}_{row['test']}": row[OBJECTIVE] for row in played}
    return {"metrics": {name: found[name] for name in PLAYED if name in found}, "item_bytes": item_bytes(model)}


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


def by_bytes(study: Study, results: Sequence[Result]) -> list[Table]:
    """What agents earn with smaller item tables: a row for each cell and budget, the largest tables first, and the
    difference to the full tables, paired by seed. Empty for a study whose agents do not play with tables."""
    played = [(result, row) for result in results for row in result["rows"] if "item_bytes" in row]
    made = []
    for dataset in dict.fromkeys(result["keys"]["dataset"] for result, _ in played):
        arms: dict[str, list[Mapping[str, Any]]] = {}
        for result, row in played:
            if result["keys"]["dataset"] == dataset:
                place = [value for key, value in result["keys"].items() if key != "dataset"]
                place += [] if row["budget"] is None else [budget_text(row["budget"])]
                arms.setdefault(", ".join(place), []).append(row)
        whole = next((rows for rows in arms.values() if rows[0]["arm"] == "full"), None)
        objective = next(iter(results[0]["metrics"]))
        lines = []
        for name, rows in sorted(arms.items(), key=lambda item: -float(np.mean([row["bytes"] for row in item[1]]))):
            line = [name, f"{np.mean([row['bytes'] for row in rows]):,.0f}", _item_bytes(rows)]
            line.append(mean_sd([row["metrics"][objective] for row in rows]))
            for metric in (metric for metric in PLAYED if metric in rows[0]["metrics"]):
                values = [row["metrics"][metric] for row in rows]
                line += [mean_sd(values, report.DIGITS), _minus(rows, whole, metric)]
            lines.append(line)
        titles = [title for metric, title in PLAYED.items() if metric in played[0][1]["metrics"]]
        head = ["tables", "bytes of all tables", "of the item table", results[0]["metrics"][objective]]
        head += [text for title in titles for text in (title, "minus full")]
        note = "Intervals of 95 % cover seeds, with their users and sessions; they are not corrected."
        made.append(Table(f"{dataset}: what {PLAYER} earns with smaller item tables", head, lines, note))
    return made


def _item_bytes(rows: Sequence[Mapping[str, Any]]) -> str:
    known = [row["item_bytes"] for row in rows]
    return "" if None in known else f"{np.mean(known):,.0f}"


def _minus(rows: Sequence[Mapping[str, Any]], whole: Sequence[Mapping[str, Any]] | None, metric: str) -> str:
    if whole is None or rows is whole:
        return ""
    ours, theirs = ({row["seed"]: row["metrics"][metric] for row in some} for some in (rows, whole))
    seeds = [seed for seed in ours if seed in theirs]
    found = difference([ours[seed] for seed in seeds], [theirs[seed] for seed in seeds])
    return with_interval(found, report.DIGITS).replace(f", {SEEDS_ALONE}", "")
