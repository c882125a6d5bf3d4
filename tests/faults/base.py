"""Small commands, the states of a project that they begin from, and what each leaves when nothing disturbs it."""

from __future__ import annotations

import gc
import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pipeline.reporting import evaluate
from pipeline.serving import latency
from pipeline.tracking import sync
from pipeline.tracking.place import meeting_mlflow
from tests.faults.oracle import Left
from tests.faults.processes import Running, command, forked
from tests.project import ROOT, Project

CHECKPOINTS = 0.1  # seconds between two checkpoints
SMALL: dict[str, Any] = {
    "dataset__options": {"rows": 4000},
    "search__epochs": 4,
    "search__batch_size": 100,
    "search__checkpoint_seconds": CHECKPOINTS,
    "retrain__epochs": 2,
    "retrain__batch_size": 200,
    "retrain__seeds": [0, 1],
    "retrain__workers": 1,
    "retrain__checkpoint_seconds": CHECKPOINTS,
    "sweep__trials": 3,
    "stream__dims": [2, 8],
    "stream__seeds": [0],
    "stream__rows": 2000,
    "stream__windows": 5,
    "chain__worlds": ["tabular"],
    "chain__agents": ["deepchain", "independent"],
    "chain__seeds": [0],
    "chain__transitions": [3000],
    "chain__sessions": 200,
    "chain__workers": 1,
    "chain__modelling__epochs": 1,
    "chain__learning__steps": 60,
}
SPEED = {"latency_ms": {str(size): {"median": 1.0, "quartiles": [1.0, 1.0]} for size in latency.BATCHES}}
MODEL = "artifacts/models/full/seed-0"
LATE = ("pipeline.experiment.train", "pipeline.experiment.find", "pipeline.training.loop", "pipeline.chain.compare")
LATE += ("pipeline.chain.report", "matplotlib.pyplot", "pandas", "pipeline.reporting.figures")


@dataclass(frozen=True)
class Job:
    """A command on a small project.

    Args:
        after: the command whose results it begins from; "" for none.
        module: that is run.
        words: its arguments.
        changes: of parameters.
    """

    after: str
    module: str
    words: Sequence[str] = ()
    changes: Mapping[str, Any] = field(default_factory=dict)


JOBS = {
    "check": Job("", "stages.check"),
    "ingest": Job("check", "stages.ingest"),
    "encode": Job("ingest", "stages.encode"),
    "search": Job("encode", "stages.search"),
    "derive": Job("search", "stages.derive"),
    "retrain": Job("derive", "stages.retrain"),
    "workers": Job("derive", "stages.retrain", changes={"retrain__workers": 2}),
    "changed": Job("derive", "stages.retrain", changes={"retrain__lr": 0.02}),
    "evaluate": Job("retrain", "stages.evaluate"),
    "sweep": Job("encode", "stages.sweep"),
    "stream": Job("ingest", "stages.stream"),
    "chain": Job("check", "stages.chain"),
    "compress": Job("retrain", "stages.export", (MODEL, "coded", "--budget", "0.1")),
    "score": Job("retrain", "stages.score", (MODEL, "new.csv", "scores.csv")),
}


@dataclass(frozen=True)
class Control:
    """An undisturbed run: what it leaves, and the processor seconds, events of files and bytes of disk it takes."""

    left: Left
    seconds: float
    events: int
    bytes: int


class Base:
    """Makes what cases begin from, when they first ask for it, and keeps it in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.controls: dict[str, Control] = {}
        self._empty = folder / "empty"
        self._made_empty()

    def _made_empty(self) -> None:
        self._empty.mkdir(parents=True)
        Project(self._empty, **SMALL)
        fields = ("user", "item", "campaign", "publisher", "device", "price", "age", "city", "browser", "zip", "tags")
        rows = [",".join((*fields, "noise", "item_copy"))]
        rows += [
            f"user_{n},item_{n % 7},campaign_1,,device_{n % 3},{n}.5,,city_1,,zip_{n},tags_1|tags_2,,item_1"
            for n in range(200)
        ]
        (self._empty / "new.csv").write_text("\n".join(rows) + "\n")

        def migrate() -> None:
            from mlflow import MlflowClient

            MlflowClient(f"sqlite:///{self._empty / 'mlflow.db'}").search_experiments()

        finished(forked(migrate, self._empty, self.folder / "printed-migrate"))

    def before(self, name: str) -> Path:
        """A project in the state that a command begins from: copy it."""
        after = JOBS[name].after
        if not after:
            return self._empty
        self.control(after)
        return self.folder / after

    def control(self, name: str) -> Control:
        """The command's undisturbed run."""
        if name not in self.controls:
            place = self.folder / name
            copied(self.before(name), place, JOBS[name].changes)
            size, counted = used(place), self.folder / f"counted-{name}"
            running = start(name, place, self.folder / f"printed-{name}", counted=counted)
            while running.runs():
                running.seconds()
            finished(running)
            size = used(place) - size
            synchronise(place)
            self.controls[name] = Control(Left.of(place), running.seconds(), int(counted.read_text()), size)
        return self.controls[name]


def start(
    name: str, place: Path, printed: Path, last: int | None = None, counted: Path | None = None, **variables: str
) -> Running:
    """Start a command, whose records stay in journals unless the variables say otherwise."""
    job = JOBS[name]
    given = {"PIPELINE_TRACKING": "journal", **variables}
    given = {key: value for key, value in given.items() if value}
    return forked(command(job.module, *job.words), place, printed, last, counted, **given)


def copied(project: Path, place: Path, changes: Mapping[str, Any]) -> None:
    shutil.copytree(project, place, symlinks=True, dirs_exist_ok=True)
    given_to(place, changes)


def given_to(place: Path, changes: Mapping[str, Any]) -> None:
    """Change parameters of a project."""
    if changes:
        copy = object.__new__(Project)
        copy.folder = place
        copy.give(**changes)


def finished(running: Running) -> None:
    """Wait for a process that nothing disturbs."""
    if running.wait():
        raise RuntimeError(f"status {running.status}: {running.said()[-2000:]}")


def synchronise(place: Path, uri: str = "") -> None:
    """Bring all records of a project to its MLflow database, or to another store."""
    variables = {"MLFLOW_TRACKING_URI": uri} if uri else {}
    finished(forked(lambda: sync.synchronise(place), place, place / "printed-sync", **variables))


def used(folder: Path) -> int:
    """Bytes of disk that a folder takes."""
    return int(subprocess.run(["du", "-s", "-B1", folder], capture_output=True, check=True).stdout.split()[0])


def imported() -> None:
    """Import what commands import, once for all processes that are forked from this one. Speeds are not measured."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path.insert(0, str(ROOT))
    for name in [*{job.module for job in JOBS.values()}, *LATE]:
        importlib.import_module(name)
    with meeting_mlflow():
        importlib.import_module("mlflow")
    evaluate.measured = lambda files, *_: {name: {**SPEED, "resident_bytes": 4096} for name in files}
    gc.freeze()
