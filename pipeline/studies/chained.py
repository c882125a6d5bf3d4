"""Cells of agents on two pages: worlds, logs and agents of a cell's section ``chain``; and agents who play with the
item tables of the models of other cells."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.chain.compare import SAME, Pass, Row, Scene, passes
from pipeline.chain.tables import item_bytes, item_vectors
from pipeline.data.encoded import Encoded
from pipeline.models.model import Model
from pipeline.models.retriever import AnyModel
from pipeline.studies.cell import Played
from pipeline.studies.grid import Cell
from pipeline.tracking.tracker import Tracker
from pipeline.training.weights import Record
from pipeline.workflow.outputs import read_json, write_json
from pipeline.workflow.places import root

OBJECTIVE = "reward"
METRICS = {OBJECTIVE: "reward per session", "reward_test": "other users", "reward_shifted": "other users and answers"}
PLAYER = "deepchain"  # who plays with the tables of a study on bytes


def run(cell: Cell, data: Encoded, work: Path, tracker: Tracker) -> dict[str, Any]:
    """All passes of a cell with the arm ``agents``, or the rest of them.

    Args:
        cell, data, work, tracker: see `pipeline.studies.cell.run`. With ``chain.users: encoded``, the users of worlds
            are those of the data.

    Returns:
        As `pipeline.studies.cell.run`, with a row for each pass, and ``sessions``: the rows of `Scene.run`, of
        `Scene.quality` and of `Scene.bounds`.
    """
    settings = cell.params.chain.model_copy(update={"seeds": cell.seeds})
    users = str(data.folder) if settings.users == "encoded" else None
    rows: list[dict[str, Any]] = []
    found: dict[str, list[Row]] = {"rows": [], "qualities": [], "bounds": []}

    def opened(name: str, seed: int) -> Record:
        return tracker.run(f"{name}/seed-{seed}", seed=seed, params=cell.params.only(["chain"]).to_dict()).metrics

    for name in settings.worlds:
        for seed in settings.seeds:
            scene = Scene(settings, name, seed, users, work / name / f"seed-{seed}")
            for one in passes(settings):
                kept = _done(scene, one, opened)
                found["rows"] += kept["rows"]
                found["qualities"].append(kept["quality"])
                rows.append(_row(seed, f"{name}, {one.policy}, {one.transitions:,} transitions", kept))
            place = {"world": name, "seed": seed}
            found["bounds"] += [{**place, "policy": key, "reward": value} for key, value in scene.bounds().items()]
    about = {"metrics": METRICS, "objective": OBJECTIVE, "impossible": {}, "fields": [], "searches": [], "tried": []}
    return {**about, "rows": rows, "sessions": found}


def rewards(
    cell: Cell, data: Encoded, model: AnyModel, seed: int, checkpoint: Path, record: Record
) -> tuple[dict[str, float], dict[str, Any]]:
    """What DeepChain earns whose items are the item table of a trained behaviour model, frozen.

    The world is that of the cell's data. The behaviour model of the targets is learned anew on the same table, from as
    many transitions as ``chain.transitions`` says.

    Args:
        cell: of the data set ``sessions``.
        data: its encoded data.
        model: trained on them.
        seed: of log, agents and sessions.
        checkpoint: beside which the agents' checkpoints are kept until they are done.
        record: receives losses of the agents.

    Returns:
        Its reward per session in each test, and ``item_bytes``; see `pipeline.chain.tables.item_bytes`.
    """
    assert isinstance(model, Model)
    options, settings = cell.params.dataset.options or {}, cell.params.chain
    world = options.get("world", "tabular")
    settings = settings.model_copy(update={"options": {world: options.get("options")}})
    work, folder = checkpoint.with_suffix(".agents"), str(root() / cell.params.dataset.path)
    of = options.get("seed", 0)
    scene = Scene(settings, world, seed, folder, work, item_vectors(model, data), of)
    played = scene.run(Pass(settings.transitions[-1], PLAYER), record)
    shutil.rmtree(work, ignore_errors=True)
    found = {OBJECTIVE if row["test"] == SAME else f"{OBJECTIVE}_{row['test']}": row[OBJECTIVE] for row in played}
    return {name: found[name] for name in METRICS if name in found}, {"item_bytes": item_bytes(model)}


PLAYED = Played(METRICS, rewards)


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


def _row(seed: int, arm: str, kept: dict[str, Any]) -> dict[str, Any]:
    """A pass as `pipeline.studies.cell.run` has the rows of models. It has no tables, and thus no bytes."""
    rewards = {("" if row["test"] == SAME else f"_{row['test']}"): row["reward"] for row in kept["rows"]}
    return {
        **{"seed": seed, "arm": arm, "budget": None, "dims": {}, "validation": None},
        **dict.fromkeys(("bytes", "of_full", "model_bytes", "table_params", "training_bytes", "search_seconds")),
        **{"metrics": {f"{OBJECTIVE}{test}": value for test, value in rewards.items()}},
        **{"epochs": 0, "seconds": kept["seconds"], "setting": 0, "run": kept["run"]},
    }
