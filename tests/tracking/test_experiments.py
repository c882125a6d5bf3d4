"""The experiments of a repository with one stage, which DVC runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.tracking.experiments import Run, experiments_of_commits, head, runs
from stages import compare

STAGE = """
import json, pathlib, yaml
budget = yaml.safe_load(open("params.yaml"))["derive"]["budget"]
figures = {"auc": 0.7, "bytes": round(1000 * budget), "of_full": budget}
pathlib.Path("artifacts").mkdir(exist_ok=True)
shown = {"deploy": {"form": "full", **figures}, "searched": figures}
pathlib.Path("artifacts/metrics.json").write_text(json.dumps(shown))
"""
PIPELINE = """
stages:
  check:
    cmd: mkdir -p artifacts && echo checked > artifacts/checked
    params: [derive, sweep]
    outs: [artifacts/checked]
  evaluate:
    cmd: python stage.py
    deps: [stage.py, artifacts/checked]
    params: [derive]
    metrics: [artifacts/metrics.json]
"""
PARAMS = "derive: {{budget: {}}}\nsweep: {{trials: 20}}\n"


def call(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def dvc(*words: str) -> None:
    call(sys.executable, "-m", "dvc", *words)


def commit(message: str) -> str:
    call("git", "add", "--all")
    call("git", "commit", "--quiet", "-m", message)
    return head()[0]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository whose last commit, on the branch main, has results. Copy it."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        prepared(folder, patch)
        call("git", "init", "--quiet", "--initial-branch=main")
        dvc("init", "--quiet")
        for name, text in {"stage.py": STAGE, "dvc.yaml": PIPELINE, "params.yaml": PARAMS.format(1.0)}.items():
            Path(name).write_text(text)
        Path(".gitignore").write_text("/artifacts/\n")
        dvc("repro", "--quiet")
        commit("results")
    return folder


@pytest.fixture
def repository(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path / "copy", symlinks=True)
    prepared(tmp_path / "copy", monkeypatch)
    return tmp_path / "copy"


def prepared(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Work in a folder, with the programs of this environment and an author for git."""
    patch.chdir(folder)
    patch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    for who in ("AUTHOR", "COMMITTER"):
        patch.setenv(f"GIT_{who}_NAME", "a")
        patch.setenv(f"GIT_{who}_EMAIL", "a@b")


def sizes(found: list[Run]) -> list[tuple[str, int | str]]:
    """Every run, by the first part of its name, with its bytes, or with the reason why it has none."""
    return [(run.name.split()[0], run.state or run.figures["deploy"]["bytes"]) for run in found]


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Callable[[], list[str]]:
    return lambda: capsys.readouterr().out.splitlines()


def test_experiments_have_the_figures_of_their_own_settings(repository: Path, printed: Callable[[], list[str]]) -> None:
    first, name = head()
    assert name == f"main {first[:7]}"
    compare.run(every=False)
    assert printed() == [
        f"main {first[:7]} has no experiments yet; this runs one: dvc exp run -S method.name=coded -S derive.budget=0.1"
    ]

    dvc("exp", "run", "--quiet", "--name", "small", "-S", "derive.budget=0.1")
    dvc("exp", "run", "--quiet", "--name", "waits", "--queue", "-S", "derive.budget=0.2")
    Path("params.yaml").write_text(PARAMS.format(0.1).replace("20", "30"))  # which no result depends on
    found = runs([first])
    assert sizes(found) == [("workspace", 100), ("main", 1000), ("small", 100), ("waits", "queued")]
    assert [run.params["derive"]["budget"] for run in found] == [0.1, 1.0, 0.1, 0.2]
    assert [run.when is None for run in found] == [True, False, False, False]

    Path("params.yaml").write_text(PARAMS.format(0.3))
    second = commit("settings without a run")
    assert sizes(runs([second])) == [("workspace", "changed since its run"), ("main", "not run with these settings")]
    assert experiments_of_commits() == {first: 1}
    compare.run(every=False)
    assert printed()[1:] == ["experiments of other commits: 1; `make compare ALL=1` shows them"]
    compare.run(every=True)
    rows = [line.split() for line in printed()]
    assert ["small", "full", "100", "10.0%", "0.7000", "100", "0.7000"] in rows


def test_results_that_are_not_in_the_cache_are_not_shown(repository: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    call("git", "clone", "--quiet", str(repository), str(clone))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(clone)
        assert sizes(runs([head()[0]])) == [
            ("workspace", "not run yet"),
            ("main", "its results are not in DVC's cache"),
        ]


def test_without_git_there_are_no_experiments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").touch()
    for path in ("", "/nowhere"):  # no repository, and no git
        if path:
            monkeypatch.setenv("PATH", path)
        with pytest.raises(ValueError, match="DVC keeps experiments in git, and there is no commit here; make one"):
            compare.run(every=False)


def test_a_workspace_that_dvc_cannot_judge_shows_no_figures(repository: Path) -> None:
    Path("dvc.yaml").write_text("stages: [")
    unknown = "`dvc status` does not say whether its results are current"
    assert sizes(runs([head()[0]])) == [("workspace", unknown), ("main", 1000)]


def test_a_folder_without_dvc_is_told_in_one_line(repository: Path) -> None:
    shutil.rmtree(".dvc")
    with pytest.raises(ValueError, match=r"^dvc exp: you are not inside of a DVC repository[^\n]*$"):
        compare.run(every=False)


def test_another_folder_of_the_repository_is_refused(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (repository / "docs").mkdir()
    monkeypatch.chdir(repository / "docs")
    with pytest.raises(ValueError, match=r"^there is no dvc.yaml in .*/docs; call it in the folder that has one$"):
        compare.run(every=False)
