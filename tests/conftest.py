import os
import subprocess
import sys
import warnings

import pytest
import torch

from tests.project import Project

torch.set_num_threads(1)


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
        evaluate__resamples=20,
    )
    with warnings.catch_warnings():  # Lightning's; marks of tests do not reach a session's fixture
        warnings.simplefilter("ignore")
        project.run("ingest", "encode", "search", "derive", "retrain", "evaluate")
    environment = {name: value for name, value in os.environ.items() if name not in ("MLFLOW_TRACKING_URI", "DVC_ROOT")}
    subprocess.run([sys.executable, "-m", "stages.sync"], cwd=folder, env=environment, check=True, capture_output=True)
    return project
