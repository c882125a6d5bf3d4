"""The servers of deploy/, started as docs/deploy.md says, and what several machines share by them: MLflow's runs and
files, the trials of a sweep, and the results of DVC."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.sweeps.storage import STORAGE, finished, open_study
from tests.postgres import absent, serving
from tests.project import ROOT, STAGES, Project
from tests.servers import answers, free_address
from tests.test_commands import environment
from tests.tracking.conftest import repository
from tests.tracking.stores import check_race, runs, search

boto3 = pytest.importorskip("boto3", reason="needs the extra s3")
pytest.importorskip("moto.server", reason="needs moto[server], which stands for S3")

ADMIN, SECRET = "hunter2", "secret0key"
KEY = {"AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1"}


@contextmanager
def running(words: list[str], log: Path, **variables: str) -> Iterator[None]:
    """A server, until the end of the block."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with log.open("w") as file:
        server = subprocess.Popen(
            words, stdout=file, stderr=file, env={**environment(), "PATH": path, **variables}, start_new_session=True
        )
    try:
        yield
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@dataclass
class Bucket:
    """A bucket of a server that speaks as S3 does."""

    address: str

    def files(self) -> dict[str, bytes]:
        key = dict(zip(("aws_access_key_id", "aws_secret_access_key", "region_name"), KEY.values(), strict=True))
        client = boto3.client("s3", endpoint_url=self.address, **key)
        listed = client.list_objects_v2(Bucket="bucket").get("Contents", [])
        return {one["Key"]: client.get_object(Bucket="bucket", Key=one["Key"])["Body"].read() for one in listed}


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    import requests

    address, log = free_address(), tmp_path_factory.mktemp("s3") / "log"
    words = [sys.executable, "-m", "moto.server", "--port", address.rpartition(":")[2]]
    with running(words, log):
        assert answers(f"{address}/moto-api/"), log.read_text()
        requests.put(f"{address}/bucket", timeout=60).raise_for_status()
        yield Bucket(address)


@dataclass
class Deployed:
    """PostgreSQL and MLflow, started by the scripts of deploy/."""

    uri: str  # of MLflow
    optuna: str  # URL of the database of sweeps
    log: Path


@pytest.fixture(scope="module")
def deployed(bucket: Bucket, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    if shutil.which("psql") is None or absent():
        pytest.skip(absent() or "needs psql")
    folder = tmp_path_factory.mktemp("deployed")
    uri, passwords = free_address(), {"MLFLOW_PASSWORD": "mlflow0password", "OPTUNA_PASSWORD": "optuna0password"}
    with serving("admin", ADMIN) as server:
        socket = str(server.folder)
        given = {
            "DATABASE": "unused: this server listens at a socket",
            **passwords,
            "MLFLOW_BACKEND_STORE_URI": f"postgresql://mlflow:$MLFLOW_PASSWORD@/mlflow?host={socket}",
            "MLFLOW_ARTIFACTS_DESTINATION": "s3://bucket/mlflow",
            "MLFLOW_HOST": "127.0.0.1",
            "MLFLOW_PORT": uri.rpartition(":")[2],
            "MLFLOW_SERVER_ALLOWED_HOSTS": uri.removeprefix("http://"),
            **{name: value for name, value in KEY.items() if "REGION" not in name},
            "MLFLOW_S3_ENDPOINT_URL": bucket.address,
        }
        template = re.findall(r"^(?:# )?([A-Z0-9_]+)=", (ROOT / "deploy/env.example").read_text(), re.MULTILINE)
        assert list(given) == template
        settings = folder / "env"
        settings.write_text("".join(f'{name}="{value}"\n' for name, value in given.items()))
        administrator = {"PGHOST": socket, "PGUSER": "admin", "PGPASSWORD": ADMIN}
        for _ in range(2):  # a second time changes nothing
            words = [str(ROOT / "deploy/databases.sh"), str(settings)]
            subprocess.run(words, env={**environment(), **administrator}, check=True)
        log, small = folder / "log", {"MLFLOW_WORKERS": "1", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with running([str(ROOT / "deploy/mlflow.sh"), str(settings)], log, **small):
            assert answers(f"{uri}/health", seconds=600), log.read_text()
            yield Deployed(uri, f"postgresql://optuna:optuna0password@/optuna?host={socket}", log)
        assert not any(password in log.read_text() for password in (ADMIN, SECRET, *passwords.values()))


@pytest.fixture
def root(tmp_path: Path, migrated: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "root").mkdir()
    yield from repository(tmp_path / "root", migrated, monkeypatch)


def test_two_clones_create_every_run_once(root: Path, deployed: Deployed, monkeypatch: pytest.MonkeyPatch) -> None:
    check_race(root, deployed.uri, monkeypatch)


def test_files_of_runs_are_in_the_bucket_and_need_no_key(
    root: Path, deployed: Deployed, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in KEY:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", deployed.uri)
    search(root, key="k-bucket", wait=True)
    [run] = runs(deployed.uri, pipeline_stage="search")
    held = {name: content for name, content in bucket.files().items() if run.info.run_id in name}
    assert [content for name, content in held.items() if name.endswith("allocation.json")] == [b"k-bucket"]
    assert run.data.metrics["val/auc"] == 0.7123456789012345


@pytest.mark.filterwarnings("ignore:Heartbeat of storage is supposed")
def test_machines_share_the_trials_of_a_sweep(
    deployed: Deployed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(STORAGE, deployed.optuna)
    for number in range(2):  # two folders, as two machines
        (tmp_path / f"{number}").mkdir()
        monkeypatch.chdir(tmp_path / f"{number}")
        study = open_study("sweep-shared", ["maximize"], "tpe", 0)
        trial = study.ask()
        trial.set_user_attr("trial", number)
        study.tell(trial, trial.suggest_float("x", 0, 1))
        assert [one.number for one in finished(study)] == list(range(number + 1))
        study._storage._backend.engine.dispose()  # type: ignore[attr-defined]


# --- DVC


def dvc(folder: Path, *words: str, **variables: str) -> str:
    """What DVC prints; it must succeed."""
    command = [sys.executable, "-m", "dvc", *words]
    done = subprocess.run(
        command, cwd=folder, env={**environment(), **variables}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)


def git(folder: Path, *words: str) -> None:
    committer = ["-c", "user.name=someone", "-c", "user.email=someone@example.org"]
    subprocess.run(["git", *committer, *words], cwd=folder, env=environment(), check=True, capture_output=True)


def remote(folder: Path, bucket: Bucket) -> None:
    """The commands of the page."""
    dvc(folder, "remote", "add", "--local", "--default", "store", "s3://bucket/dvc")
    dvc(folder, "remote", "modify", "--local", "store", "endpointurl", bucket.address)


def test_a_fresh_clone_pulls_all_results_and_runs_nothing(finished: Project, bucket: Bucket, tmp_path: Path) -> None:
    pytest.importorskip("dvc_s3", reason="needs the extra s3")
    ours, clone = finished.copy(tmp_path / "ours").run("check").folder, tmp_path / "clone"
    for name in (".gitignore", ".dvcignore", ".dvc/config", ".dvc/.gitignore"):
        (ours / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, ours / name)
    (ours / "data/README.md").write_text("the data are drawn\n")
    git(ours, "init")
    dvc(ours, "commit", "--force", "check", *STAGES)
    git(ours, "add", ".")
    git(ours, "commit", "--message", "results")
    remote(ours, bucket)
    dvc(ours, "push", **KEY)
    git(tmp_path, "clone", "ours", "clone")
    assert not (clone / "artifacts").exists()
    remote(clone, bucket)
    dvc(clone, "pull", **KEY)
    assert "up to date" in dvc(clone, "status", "check", *STAGES)
    assert "Running stage" not in dvc(clone, "repro")
    pulled = Project.at(clone).files()
    assert pulled == Project.at(ours).files() and "artifacts/report.json" in pulled
    git(clone, "diff", "--exit-code")
