import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.data.split import Split
from tests.postgres import absent, serving
from tests.project import Project
from tests.sweeps.sweeps import DECLARED, SPACE


@pytest.fixture(scope="session")
def ready(planted: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """What DVC promises a sweep and no more: the rows for training and validation. Copy it."""
    given = {"sweep__space": SPACE, "sweep__trials": 3, "search__lr": 0.03, "retrain__lr": 0.03}
    project = planted.copy(tmp_path_factory.mktemp("ready")).give(**given)
    for path in [*(project.folder / "artifacts/encoded").iterdir(), project.folder / "artifacts/raw"]:
        if str(path.relative_to(project.folder)) not in DECLARED["deps"]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(project.folder / ".pipeline")
    return project


@pytest.fixture(scope="session")
def opened() -> set[str]:
    """The parts of the data that `swept` opens."""
    return set()


@pytest.fixture(scope="session")
def swept(ready: Project, opened: set[str], tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Three trials for AUC and bytes. Only read from it."""
    load = Split.load.__func__

    def watched(cls: type[Split], folder: Path, *parts: Any) -> Split:
        opened.update(parts)
        return load(cls, folder, *parts)

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # marks of tests do not reach a session's fixture
        patch.setattr(Split, "load", classmethod(watched))
        return ready.copy(tmp_path_factory.mktemp("swept")).run("sweep")


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The address of a PostgreSQL server of its own, with a password in it."""
    if missing := absent():
        pytest.skip(missing)
    with serving() as server:
        yield server.address
