"""The experiments of DVC: the settings of each, its state, and its figures of ``dvc metrics``."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pipeline.workflow.params import FILE, value_at
from pipeline.workflow.places import METRICS
from pipeline.workflow.yaml_values import values_of

WORKSPACE = "workspace"
CHECK, LAST = "check", "evaluate"  # stages; no result depends on the first one, which reads all parameters and code
EXPERIMENTS = "refs/exps/"  # in git: refs/exps/<2 digits of the commit>/<38 digits>/<name>


@dataclass(frozen=True)
class Run:
    """The workspace, a commit or an experiment.

    Args:
        name: "workspace", the branch and the commit, or the name of the experiment.
        when: it was made; None for the workspace.
        params: all parameters, nested.
        figures: what ``dvc metrics`` holds, nested; empty if there are none for these parameters.
        state: why there are no figures, e.g. "queued"; empty if there are some.
    """

    name: str
    when: datetime | None
    params: Mapping[str, Any]
    figures: Mapping[str, Any]
    state: str = ""


def head() -> tuple[str, str]:
    """The last commit, and how it is called: by its branch and its first digits.

    Raises:
        ValueError: if the folder is in no git repository, or there is no commit yet.
    """
    try:
        commit = _output(["git", "rev-parse", "--verify", "--quiet", "HEAD"]).strip()
        branch = _output(["git", "branch", "--show-current"]).strip()
    except (OSError, subprocess.CalledProcessError):
        raise ValueError(
            "DVC keeps experiments in git, and there is no commit here; make one (git init, git add ., git commit), "
            "and call `dvc config --local --unset core.no_scm` if DVC was set up before that"
        ) from None
    return commit, _called(branch, commit)


def experiments_of_commits() -> dict[str, int]:
    """The number of finished experiments of each commit that has some."""
    numbers: dict[str, int] = {}
    for reference in _output(["git", "for-each-ref", "--format=%(refname)", EXPERIMENTS]).split():
        first, _, rest = reference.removeprefix(EXPERIMENTS).partition("/")
        others, _, name = rest.partition("/")
        if name and len(first) == 2:  # not those that DVC keeps for itself, e.g. refs/exps/exec/EXEC_HEAD
            numbers[first + others] = numbers.get(first + others, 0) + 1
    return numbers


def runs(commits: Sequence[str]) -> list[Run]:
    """The workspace, and each commit followed by its experiments.

    Raises:
        ValueError: if DVC cannot read them.
    """
    return list(_runs(json.loads(_dvc("exp", "show", "--json", *(f"--rev={commit}" for commit in commits)))))


def _runs(shown: Sequence[Mapping[str, Any]]) -> Iterator[Run]:
    """The runs in what `dvc exp show --json` printed."""
    here = any(_executor(one) == ("running", WORKSPACE) for top in shown for one in top["experiments"] or [])
    for top in shown:
        if top["rev"] == WORKSPACE:
            yield _run(WORKSPACE, top, "running" if here else _state_of_workspace())
            continue
        yield _run(_called(top["name"], top["rev"]), top, _state_of_commit(top))
        for experiment in top["experiments"] or []:
            state, place = _executor(experiment)
            if (state, place) == ("running", WORKSPACE):
                continue  # it is the workspace
            tip = experiment["revs"][0]
            name = tip["name"] or tip["rev"][:7]
            if state == "failed":
                state = f"failed; `dvc queue logs {name}` shows why"
            elif state not in ("queued", "running"):
                state = _state_of_commit(tip)
            yield _run(name, tip, state)


def _executor(experiment: Mapping[str, Any]) -> tuple[str, str]:
    """The state of an experiment, and the name of what runs it; empty if nothing does."""
    executor = experiment["executor"] or {}
    return executor.get("state") or "", executor.get("name") or ""


def _run(name: str, shown: Mapping[str, Any], state: str) -> Run:
    data = shown["data"] or {}
    figures = data.get("metrics", {}).get(str(METRICS), {}).get("data") or {}
    if not (state or figures):
        state = "its results are not in DVC's cache"
    when = datetime.fromisoformat(data["timestamp"]) if data.get("timestamp") else None
    return Run(name, when, _params(shown), {} if state else figures, state)


def _params(shown: Mapping[str, Any]) -> Mapping[str, Any]:
    params: Mapping[str, Any] = ((shown["data"] or {}).get("params", {}).get(str(FILE)) or {}).get("data") or {}
    return params


def _state_of_workspace() -> str:
    """Empty if the results are those of the code, the data and the parameters that are there."""
    if not METRICS.is_file():
        return "not run yet"
    try:
        changed = json.loads(_dvc("status", "--json", "--with-deps", LAST))
    except ValueError:  # e.g. because `dvc repro` is at work
        return "`dvc status` does not say whether its results are current"
    return "changed since its run" if set(changed) - {CHECK} else ""


def _state_of_commit(shown: Mapping[str, Any]) -> str:
    """Empty if the results that dvc.lock names are those of the parameters."""
    try:
        stages = values_of(_output(["git", "show", f"{shown['rev']}:./dvc.lock"]), "dvc.lock")["stages"]
    except subprocess.CalledProcessError:  # it has no dvc.lock
        stages = {}
    if LAST not in stages:
        return "not run"
    params = _params(shown)
    read = [stage.get("params", {}).get(str(FILE), {}) for name, stage in stages.items() if name != CHECK]
    same = all(value_at(params, key) == value for values in read for key, value in values.items())
    return "" if same else "not run with these settings"


def _called(branch: str | None, commit: str) -> str:
    return f"{branch or ''} {commit[:7]}".strip()


def _dvc(*words: str) -> str:
    """What a command of DVC prints.

    Raises:
        ValueError: with its message, if it fails.
    """
    try:
        return _output([sys.executable, "-m", "dvc", *words])
    except subprocess.CalledProcessError as error:
        said = [line for line in error.stderr.splitlines() if line.strip()] or [f"exit code {error.returncode}"]
        raise ValueError(f"dvc {words[0]}: {said[0].removeprefix('ERROR: ')}") from None


def _output(command: Sequence[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
