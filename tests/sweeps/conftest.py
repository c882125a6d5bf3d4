import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from pipeline.data.split import Split
from tests.project import Project
from tests.sweeps.sweeps import DECLARED, PASSWORD, SPACE


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
    """The address of a PostgreSQL server of its own, with `PASSWORD` in it."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin")) or [Path(shutil.which("initdb") or "").parent]
    if not (places[-1] / "initdb").is_file() or find_spec("psycopg") is None:
        pytest.skip("needs PostgreSQL and psycopg")
    with tempfile.TemporaryDirectory(prefix="pg", ignore_cleanup_errors=True) as name:  # short, for the socket's sake
        folder = Path(name)
        (folder / "password").write_text(PASSWORD)
        owner: dict[str, Any] = {}
        if os.getuid() == 0:  # the server refuses to be root's
            owner = {"user": "nobody", "group": "nogroup", "extra_groups": []}
            for path in (folder, folder / "password"):
                shutil.chown(path, "nobody", "nogroup")

        def call(*command: str) -> None:
            environment = {"PATH": f"{places[-1]}:{os.environ['PATH']}", "LC_ALL": "C"}
            subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, check=True, **owner)

        made = ["-U", "sweep", "-A", "scram-sha-256", "--pwfile=password", "-E", "UTF8", "--no-sync", "-D", "data"]
        call("initdb", *made)
        call("pg_ctl", *["-w", "-D", "data", "-l", "log", "-o"], f"-c listen_addresses='' -k {folder} -F", "start")
        yield f"postgresql://sweep:{PASSWORD}@/postgres?host={folder}"
        call(*["pg_ctl", "-D", "data", "-m", "immediate", "stop"])
