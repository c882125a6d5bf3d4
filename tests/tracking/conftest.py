import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import answers, free_address
from tests.tracking.stores import followers, until


def repository(folder: Path, migrated: Path, patch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A repository with an empty store, as the working directory. No follower outlives it."""
    shutil.copy(migrated, folder)
    for name in ("MLFLOW_TRACKING_URI", "PIPELINE_TRACKING", "DVC_ROOT", "DVC_EXP_NAME"):
        patch.delenv(name, raising=False)
    patch.setenv("GIT_CEILING_DIRECTORIES", str(folder.parent))
    patch.chdir(folder)
    yield folder
    for process in followers(folder):
        process.kill()
    until(lambda: not followers(folder))


@pytest.fixture
def root(tmp_path: Path, migrated: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    yield from repository(tmp_path, migrated, monkeypatch)


@pytest.fixture
def journal_only(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same repository, without a follower: `synchronise` brings the journals in."""
    monkeypatch.setenv("PIPELINE_TRACKING", "journal")
    return root


class Server:
    """An MLflow server on a database of its own."""

    def __init__(self, folder: Path, uri: str) -> None:
        self.folder, self.uri = folder, uri
        self.start()

    def start(self) -> None:
        store = ["--backend-store-uri", f"sqlite:///{self.folder / 'mlflow.db'}"]
        served = ["--artifacts-destination", str(self.folder / "served")]
        listen = ["--host", "127.0.0.1", "--port", self.uri.rpartition(":")[2], "--workers", "1"]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *store, *served, *listen],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={
                **os.environ,
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # eight more processes
            },
            start_new_session=True,
        )

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        if self.runs:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


@pytest.fixture(scope="session", autouse=True)
def booting(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, migrated: Path
) -> Iterator[Server | None]:
    """The server starts while other tests run."""
    if not any("server" in getattr(item, "fixturenames", ()) for item in request.session.items):
        yield None
        return
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(migrated, folder)
    server = Server(folder, free_address())
    yield server
    server.kill()


@pytest.fixture
def server(booting: Server) -> Server:
    if not booting.runs:  # a test has killed it
        booting.start()
    assert answers(f"{booting.uri}/health"), "mlflow server did not start within two minutes"
    return booting
