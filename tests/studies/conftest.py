import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.studies.grid import Study
from tests.studies.small import SMALL, run_cell, written


@contextmanager
def inside(place: Path) -> Iterator[None]:
    """Work in a repository of studies, with the journal as the only record."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("PIPELINE_TRACKING", "journal")
        patch.setenv("DVC_ROOT", str(place))
        patch.delenv("DVC_STAGE", raising=False)
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="session")
def done(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study whose first cell is done, the search with its controls: only read from it."""
    place = tmp_path_factory.mktemp("done")
    with inside(place), warnings.catch_warnings():  # marks of tests do not reach a session's fixture
        warnings.simplefilter("ignore")
        study = Study("overall", "quick", written(place, SMALL))
        run_cell(study)
    return study


@pytest.fixture
def tiny(done: Study, tmp_path: Path) -> Iterator[Study]:
    """A study whose data are here, and nothing else; tests work in its folder."""
    with inside(tmp_path):
        study = Study("overall", "quick", written(tmp_path, SMALL))
        shutil.copytree(done.folder / "artifacts/data", study.folder / "artifacts/data")
        os.chdir(study.folder)
        yield study
