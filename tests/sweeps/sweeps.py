"""What the tests of sweeps share: what is searched, a sweep's results, its study, and sweeps as processes."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import optuna
import pytest
import yaml
from optuna.trial import FrozenTrial, TrialState

from pipeline.data.encoded import Encoded
from pipeline.sweeps.storage import STORAGE
from pipeline.sweeps.sweep import Sweep
from pipeline.workflow.params import Params, declared
from pipeline.workflow.places import ENCODED
from stages import sweep
from tests import processes
from tests.project import ROOT, Project

DECLARED = yaml.safe_load((ROOT / "sweep/dvc.yaml").read_text())["stages"]["sweep"]
SPACE = {
    "method": {
        "options": {
            "autodim": {"warm_up": {"low": 0.1, "high": 0.6}, "temperature": {"start": {"low": 0.5, "high": 2.0}}}
        }
    },
    "search": {
        "candidates": {"default": ["planted", "even"], "user, item": ["planted", "even"]},
        "weight_decay": [0.0, 0.00001],
        "architecture": {"lr": {"low": 0.005, "high": 0.1, "log": True}, "every": [1, 2]},
    },
}
SEARCHED = 7  # parameters of SPACE
WARM_UP = {"method": {"options": {"autodim": {"warm_up": {"low": 0.1, "high": 0.6}}}}}
QUIET = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),  # Lightning's
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
]


def rows(project: Project) -> list[dict[str, str]]:
    with (project.folder / "artifacts/sweep/trials.csv").open() as file:
        return list(csv.DictReader(file))


def results(project: Project) -> Mapping[str, bytes]:
    return {name: content for name, content in project.files().items() if name.startswith("artifacts/sweep/")}


def here() -> Sweep:
    """The sweep of the working directory."""
    return Sweep(Params.load(), declared("sweep"), Encoded.load(ENCODED))


def study_of(project: Project, storage: str | None = None) -> optuna.Study:
    """As the project's sweep opens it, in a database if one is given."""
    with project.inside() as patch:
        if storage:
            patch.setenv(STORAGE, storage)
        return here().open()


def disconnect(study: optuna.Study) -> None:
    """Close the connections to a database, which Optuna keeps."""
    study._storage._backend.engine.dispose()  # type: ignore[attr-defined]


def at_work(study: optuna.Study, least: int = 1) -> FrozenTrial | None:
    """A trial whose parameters are all drawn and whose end is still to come, if there are at least so many."""
    running = study.get_trials(states=(TrialState.RUNNING,))
    begun = [trial for trial in running if len(trial.params) == SEARCHED and "trial" in trial.user_attrs]
    return begun[0] if len(begun) >= least else None


def worker_of(trial: FrozenTrial) -> int:
    """The id of the process that a trial runs in."""
    return int(trial.user_attrs["process"]["pipeline.pid"])


def start(project: Project, printed: Path, **environment: str) -> ForkServerProcess:
    """The stage as a process; needs the fixture `forks`.

    Args:
        printed: file for what it prints.
    """
    return processes.start(sweep.run, project.folder, printed, **environment)
