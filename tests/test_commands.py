"""The commands of README.md and docs/own-data.md: a test runs each as it stands on the page, or CI does."""

import contextlib
import csv
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.workflow.yaml_values import read_yaml
from tests.project import ROOT, SMALL, Project
from tests.servers import free_address
from tests.tracking.stores import followers, runs, until

PAGES = ("README.md", "docs/own-data.md")
DESCRIBE, REPRO, UI = "make describe FILE=data/clicks.csv", "make repro PARAMS=clicks", "make ui"
ACTIVATE = "source .venv/bin/activate"
EXPORT = "python -m stages.export artifacts/models/full/seed-0 model --budget 0.025"
SCORE = "python -m stages.score model new.csv scores.csv"
NAMED_LABEL = "make describe FILE=data/clicks.csv LABEL=bought"
NEEDED = ("Makefile", "requirements.lock", "pyproject.toml")


def on(page: str) -> list[str]:
    """The commands in the shell blocks of a page, without their comments."""
    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    return [shlex.join(words) for line in "".join(blocks).splitlines() if (words := shlex.split(line, comments=True))]


def repository(folder: Path, migrated: Path) -> Path:
    """A small project in git, after the installation, with a log of one's own."""
    Project(folder, **SMALL)
    for name in NEEDED:
        shutil.copy(ROOT / name, folder)
    shutil.copy(migrated, folder / "mlflow.db")
    rng = random.Random(0)
    users = [rng.randrange(500) for _ in range(20000)]
    rows = [f"u{user},{rng.randrange(2)},{int(rng.random() < (0.8 if user % 2 else 0.2))}" for user in users]
    (folder / "data/clicks.csv").write_text("\n".join(["user,member,clicked", *rows]) + "\n")
    (folder / "new.csv").write_text("user,member\nu1,0\nu2,1\nu999,0\n")
    binaries = folder / ".venv/bin"
    binaries.mkdir(parents=True)
    for name, command in (("python", [sys.executable]), ("dvc", [sys.executable, "-m", "dvc"])):
        (binaries / name).write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
        (binaries / name).chmod(0o755)
    (binaries / "activate").write_text(f"PATH={shlex.quote(str(binaries))}:$PATH\n")
    (folder / ".venv/.ready").touch()
    (folder / ".gitignore").write_text("/.venv/\n/artifacts/\n/.pipeline/\n/mlflow.db*\n/data/\n")
    committer = ["-c", "user.name=someone", "-c", "user.email=someone@example.org"]
    for words in (["init", "--quiet"], ["add", "."], [*committer, "commit", "--quiet", "--message", "a project"]):
        subprocess.run(["git", *words], cwd=folder, env=environment(), check=True)
    subprocess.run([binaries / "dvc", "init", "--quiet"], cwd=folder, env=environment(), check=True)
    return folder


def environment(**more: str) -> dict[str, str]:
    """The environment of a shell that has nothing of the tests' own settings."""
    ours = ("PIPELINE_", "MLFLOW_", "DVC_", "GIT_", "MAKE", "PYTEST")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**kept, "OMP_NUM_THREADS": "1", "DVC_NO_ANALYTICS": "true", **more}


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    words = ["bash", "-c", command]
    return subprocess.run(words, cwd=folder, env=environment(), capture_output=True, text=True, check=False)


@pytest.fixture
def own_log(tmp_path: Path, migrated: Path) -> Iterator[Path]:
    yield repository(tmp_path, migrated)
    for process in followers(tmp_path):
        process.kill()
    until(lambda: not followers(tmp_path))


def test_every_command_is_run_here_or_by_ci() -> None:
    commands = {command for page in PAGES for command in on(page)}
    ci = {line for line in (ROOT / ".ci/run").read_text().splitlines() if line.startswith("make ")}
    assert commands - ci == {DESCRIBE, NAMED_LABEL, REPRO, UI, ACTIVATE, EXPORT, SCORE}
    assert {"make test", "make repro"} <= ci


def test_help_lists_every_target() -> None:
    shown = run("make help", ROOT).stdout
    (targets,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert [line.split()[0] for line in shown.splitlines()] == targets.split()


def test_the_commands_for_a_log_of_ones_own_lead_from_the_file_to_scores_and_the_runs_table(own_log: Path) -> None:
    described = run(DESCRIBE, own_log)
    assert described.returncode == 0, described.stderr
    assert described.stdout.endswith(f"wrote params/clicks.yaml; correct it where it is wrong\nthen: {REPRO}\n")

    trained = run(REPRO, own_log)
    assert trained.returncode == 0, trained.stderr
    assert "settings: params.yaml holds those of params/clicks.yaml" in trained.stdout
    report = trained.stdout.partition("Running stage 'evaluate'")[2]
    assert "**Deploy " in report and "table, deepfm, autodim, seeds [0, 1]" in report
    assert (own_log / "artifacts/report.html").is_file()

    scored = run(f"{ACTIVATE}; {EXPORT} && {SCORE}", own_log)
    assert scored.returncode == 0, scored.stderr
    with (own_log / "scores.csv").open() as file:
        odd, even, unknown = (float(row["probability"]) for row in csv.DictReader(file))
    assert 0 < even < 0.4 < 0.6 < odd < 1, (even, unknown, odd)

    with served(UI, own_log) as (address, printed):
        until(lambda: f"verdict and figures: {address}/#/experiments/" in printed.read_text(), seconds=120)
        until(lambda: "<title>MLflow</title>" in fetched(address), seconds=120)
    names = {recorded.info.run_name for recorded in runs(own_log)}
    assert "clicks.csv, autodim, deepfm" in names, names


def test_of_two_columns_that_can_be_the_label_the_one_that_is_named_becomes_it(own_log: Path) -> None:
    log = own_log / "data/clicks.csv"
    log.write_text(log.read_text().replace("member,clicked", "bought,clicked"))
    asked = run(DESCRIBE, own_log)
    assert asked.returncode != 0 and "these have two values: 'bought'" in asked.stderr
    assert not (own_log / "params/clicks.yaml").exists()
    described = run(NAMED_LABEL, own_log)
    assert described.returncode == 0, described.stderr
    assert read_yaml(own_log / "params/clicks.yaml")["dataset"]["options"]["label"] == "bought"


@contextlib.contextmanager
def served(command: str, folder: Path) -> Iterator[tuple[str, Path]]:
    """The address at which a command serves, and the file of what it prints."""
    address, printed = free_address(), folder / "printed"
    variables = environment(MLFLOW_PORT=address.rpartition(":")[2])
    with printed.open("wb") as file:
        server = subprocess.Popen(
            ["bash", "-c", command], cwd=folder, env=variables, stdout=file, stderr=file, start_new_session=True
        )
    try:
        yield address, printed
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def fetched(address: str) -> str:
    """The page at an address; empty while nobody answers."""
    try:
        with urllib.request.urlopen(address, timeout=10) as page:
            return str(page.read().decode())
    except OSError:
        return ""
