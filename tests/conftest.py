import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.tracking.place import meeting_mlflow
from tests.project import ROOT, SMALL, Project

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def forks() -> None:
    """The process that others are forked from runs, has imported the stages, and has the environment of most tests."""
    from pipeline.workflow import workers

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)  # whose code it imports
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PIPELINE_TRACKING", "journal")
        for name in ("DVC_ROOT", "DVC_STAGE", "PIPELINE_SWEEP_STORAGE", "PIPELINE_ENDS_WITH"):
            patch.delenv(name, raising=False)
        workers.start_server("pipeline.sweeps.workers")  # it imports Optuna


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """A test leaves the current folder and the project's log as they were, even if it runs a command, which enters a
    folder and shows the log on the console, or a library that disables all loggers."""
    log = logging.getLogger("pipeline")
    level, handlers, folder = log.level, log.handlers[:], Path.cwd()
    yield
    os.chdir(folder)
    log.setLevel(level)
    log.handlers[:] = handlers
    for name in logging.root.manager.loggerDict:
        if name.split(".")[0] == "pipeline":
            logging.getLogger(name).disabled = False


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Planted data, ingested and encoded."""
    return Project(tmp_path_factory.mktemp("planted"), dataset__options={"rows": 2500}, **SMALL).run("ingest", "encode")


@pytest.fixture(scope="session")
def finished(planted: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """All stages' results on planted data with the defaults: do not write into it, copy it."""
    with warnings.catch_warnings():  # a session's fixture does not see the marks of tests
        warnings.simplefilter("ignore")
        return planted.copy(tmp_path_factory.mktemp("finished")).run("search", "derive", "retrain", "evaluate")


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A click log as a user would bring it, ingested and encoded; users differ in how often they click."""
    folder = tmp_path_factory.mktemp("table")
    rng = np.random.default_rng(0)
    lines = ["clicked,user,item,price,tags"]
    for _ in range(1500):
        user, item, price = rng.integers(0, 30), rng.integers(0, 20), rng.integers(0, 99)
        tags = "|".join(f"t{tag}" for tag in rng.integers(0, 6, rng.integers(1, 4)))
        lines.append(f"{int(rng.random() < (0.8 if user % 2 else 0.2))},u{user},i{item},{price},{tags}")
    (folder / "clicks.csv").write_text("\n".join(lines) + "\n")
    options = {"label": "clicked", "categorical": ["user", "item"], "numeric": ["price"], "bag": ["tags"]}
    dataset = {"name": "table", "path": "clicks.csv", "options": options}
    return Project(folder, dataset=dataset, **SMALL).run("ingest", "encode")


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that MLflow has migrated once; a copy of it saves each test some seconds."""
    file = tmp_path_factory.mktemp("migrated") / "mlflow.db"
    with meeting_mlflow():
        from mlflow import MlflowClient

        MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A small run of all stages on planted data, brought to an MLflow database in its folder: only read from it."""
    folder = tmp_path_factory.mktemp("recorded")
    project = Project(
        folder,
        dataset__options={"rows": 3000},
        search__epochs=2,
        search__batch_size=200,
        retrain__epochs=1,
        retrain__batch_size=500,
        retrain__seeds=[0, 1],
    )
    with warnings.catch_warnings():  # Lightning's; marks of tests do not reach a session's fixture
        warnings.simplefilter("ignore")
        project.run("ingest", "encode", "search", "derive", "retrain", "evaluate")
    environment = {name: value for name, value in os.environ.items() if name not in ("MLFLOW_TRACKING_URI", "DVC_ROOT")}
    subprocess.run([sys.executable, "-m", "stages.sync"], cwd=folder, env=environment, check=True, capture_output=True)
    return project
