"""Sweeps of a few trials on small data: what they find, what they leave, and what happens to them on the way."""

import csv
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
import yaml
from optuna.trial import TrialState

from pipeline.data.schema import Schema
from pipeline.data.split import Split
from pipeline.tracking import this_process
from stages import _space, _stage, sweep
from tests.project import ROOT, Project

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
]
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
GIVEN = {"sweep__space": SPACE, "sweep__trials": 3, "search__lr": 0.03, "retrain__lr": 0.03}


@pytest.fixture(scope="module")
def ready(planted: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """What DVC promises a sweep and no more: the rows for training and validation. Copy it."""
    project = planted.copy(tmp_path_factory.mktemp("ready")).give(**GIVEN)
    for path in [*(project.folder / "artifacts/encoded").iterdir(), project.folder / "artifacts/raw"]:
        if str(path.relative_to(project.folder)) not in DECLARED["deps"]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(project.folder / ".pipeline")
    assert not (project.folder / "artifacts/encoded/test").exists()
    return project


@pytest.fixture(scope="module")
def swept(ready: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Three trials for AUC and bytes. Only read from it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ready.copy(tmp_path_factory.mktemp("swept")).run("sweep")


def trials(project: Project) -> list[dict[str, str]]:
    with (project.folder / "artifacts/sweep/trials.csv").open() as file:
        return list(csv.DictReader(file))


def results(project: Project) -> Mapping[str, bytes]:
    return {name: content for name, content in project.files().items() if name.startswith("artifacts/sweep/")}


# --- what it finds


def test_no_trial_opens_the_test_rows(ready: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: set[str] = set()
    load = Split.load.__func__

    def watched(cls: type[Split], folder: Path, *parts: Any) -> Split:
        opened.update(parts)
        return load(cls, folder, *parts)

    monkeypatch.setattr(Split, "load", classmethod(watched))
    project = ready.copy(tmp_path).give(sweep__trials=1).run("sweep")  # where they are not, and none is missed
    assert opened == {"train", "arch", "val"}
    assert len(trials(project)) == 1 and not any("test" in dep for dep in DECLARED["deps"])


def test_the_front_holds_the_trials_that_none_surpasses(swept: Project) -> None:
    rows = trials(swept)
    assert [row["trial"] for row in rows] == ["0", "1", "2"] and {row["ended"] for row in rows} == {"complete"}
    points = [(float(row["val_auc"]), int(row["bytes"])) for row in rows]
    for row, (auc, size) in zip(rows, points, strict=True):
        surpassed = any(a >= auc and b <= size and (a, b) != (auc, size) for a, b in points)
        assert row["best"] == ("0" if surpassed else "1")
    assert len(set(points)) == 3


def test_values_lie_in_their_ranges_and_make_a_difference(swept: Project) -> None:
    for row in trials(swept):
        assert 0.1 <= float(row["method.options.autodim.warm_up"]) <= 0.6
        assert 0.005 <= float(row["search.architecture.lr"]) <= 0.1
        assert row["search.architecture.every"] in ("1", "2") and row["search.weight_decay"] in ("0.0", "1e-05")
        even = row["search.candidates.user, item"] == "even"
        assert row["dim.user"] in (("2", "4", "6", "8") if even else ("1", "2", "4", "8"))


def test_the_best_parameters_make_the_best_trial_again(swept: Project, tmp_path: Path) -> None:
    from dvc.utils.hydra import apply_overrides

    best = max(trials(swept), key=lambda row: float(row["val_auc"]))
    text = (swept.folder / "artifacts/sweep/best.yaml").read_text()
    (command,) = re.findall(r"(?m)^# (dvc exp run .*)$", text)
    overrides = [word for word in shlex.split(command)[3:] if word != "-S"]
    project = swept.copy(tmp_path)
    before = yaml.safe_load((tmp_path / "params.yaml").read_text())
    apply_overrides(str(tmp_path / "params.yaml"), overrides)  # as `dvc exp run -S` does
    with project.inside():
        assert _stage.all_params() == merged(before, yaml.safe_load(text))
    project.run("search", "derive", "retrain")
    dims = project.read("allocation.json")["dims"]
    assert dims == {name.removeprefix("dim."): int(d) for name, d in best.items() if name.startswith("dim.")}
    history = project.read("models/searched/seed-0/history.json")
    assert repr(max(entry["auc"] for entry in history)) == best["val_auc"]


def merged(base: Any, changes: Any) -> Any:
    """Mappings into mappings; candidates, which are one value, in place of others."""
    if not (isinstance(base, dict) and isinstance(changes, dict)):
        return changes
    return {**base, **{name: merged(base.get(name), value) for name, value in changes.items()}}


def test_within_a_budget_the_big_are_not_retrained_and_the_hopeless_end_early(
    swept: Project, ready: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "UNPRUNED_TRIALS", 1)
    budget = sorted(int(row["bytes"]) for row in trials(swept))[1]
    changes = {"sweep__objective": "budget", "sweep__budget": budget, "sweep__trials": 8, "retrain__epochs": 3}
    rows = trials(ready.copy(tmp_path).give(**changes).run("sweep"))
    assert len(rows) == 8 and {row["ended"] for row in rows} == {"complete", "early", "over budget"}
    for row in rows:
        assert (row["ended"] == "over budget") == (int(row["bytes"]) > budget) == (row["val_auc"] == "")
    whole = [row for row in rows if row["ended"] == "complete"]
    (best,) = (row for row in rows if row["best"] == "1")
    assert best == max(whole, key=lambda row: float(row["val_auc"]))
    assert all(float(row["val_auc"]) < float(best["val_auc"]) for row in rows if row["ended"] == "early")


def test_a_budget_that_no_trial_keeps_is_said(
    ready: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"sweep__objective": "budget", "sweep__budget": 100, "sweep__trials": 1}
    project = ready.copy(tmp_path).give(**changes).run("sweep")
    said = "sweep: none of 1 trials came to its end within the budget of 100 bytes; widen sweep.space in params.yaml"
    assert said in capsys.readouterr().out
    assert not (project.folder / "artifacts/sweep/best.yaml").exists() and len(trials(project)) == 1


# --- what it leaves


def test_the_page_is_one_file_with_all_that_was_found(swept: Project) -> None:
    page = (swept.folder / "artifacts/sweep/sweep.html").read_text()
    assert set(re.findall(r'(?:src|href)="([a-z]+:[a-z]+)', page)) == {"data:image"} and "<script" not in page
    assert page.count("<img") == 3 and "prefers-color-scheme: dark" in page and "@media print" in page
    for row in trials(swept):
        assert f"<tr><td>{row['trial']}</td><td>complete</td><td>{float(row['val_auc']):.4f}</td>" in page
    figures = {path.name for path in (swept.folder / "artifacts/sweep/figures").glob("*.png")}
    assert figures == {"front.png", "history.png", "importances.png"}


def test_every_trial_is_a_child_of_the_sweep_with_its_trajectories(
    swept: Project, tmp_path: Path, migrated: Path
) -> None:
    project = swept.copy(tmp_path)
    shutil.copy(migrated, tmp_path)
    with project.inside() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        subprocess.run(
            [
                sys.executable,
                "-c",
                "from pathlib import Path; from pipeline.tracking import synchronise as s; s(Path())",
            ],
            check=True,
        )
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as store:
        names = dict(store.execute("select run_uuid, name from runs where status = 'FINISHED'"))
        parents = dict(store.execute("select run_uuid, value from tags where key = 'mlflow.parentRunId'"))
        children = {name: run for run, name in names.items() if run in parents}
        assert sorted(children) == ["sweep/trial-0", "sweep/trial-1", "sweep/trial-2"]
        (parent,) = set(names) - set(parents)
        assert set(parents.values()) == {parent} and names[parent].startswith("sweep-")
        for row in trials(swept):
            asked = (children[f"sweep/trial-{row['trial']}"],)
            points = list(store.execute("select key, step, value from metrics where run_uuid = ?", asked))
            last = {key: value for key, _, value in sorted(points, key=lambda point: point[1])}
            assert last["val/auc"] == float(row["val_auc"]) and last["bytes"] == int(row["bytes"])
            steps = {step for key, step, _ in points if key == f"search/p/price/{row['dim.price']}"}
            assert len(steps) > 3 and {"retrain/val/auc", "search/tau"} <= set(last)
            params = dict(store.execute("select key, value from params where run_uuid = ?", asked))
            assert params["method.options.autodim.warm_up"] == row["method.options.autodim.warm_up"]


# --- what happens on the way


def test_more_trials_go_on_with_the_same_study_and_give_what_one_sweep_would(
    swept: Project, ready: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = ready.copy(tmp_path).give(sweep__trials=1).run("sweep")
    project.give(sweep__trials=3).run("sweep")
    assert ", 1 of 3 trials finished" in capsys.readouterr().out
    assert results(project) == results(swept)
    project.run("sweep")
    assert "sweep: 0 trials, " in capsys.readouterr().out


def test_a_sweep_that_is_killed_goes_on_where_it_was(swept: Project, ready: Project, tmp_path: Path) -> None:
    project = ready.copy(tmp_path)
    with project.inside():
        process = start()
        folder = wait_for(lambda: next(tmp_path.glob(".pipeline/sweep/*/trial-1"), None), process)
        process.kill()
        process.communicate()
    assert folder.exists()
    project.run("sweep")
    assert results(project) == results(swept)
    with project.inside():
        states = [trial.state.name for trial in study(project).trials]
    assert states == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert not list(tmp_path.glob(".pipeline/sweep/*/trial-*"))  # nothing is left to go on with


@pytest.mark.parametrize("end", [SystemExit(143), KeyboardInterrupt(), ValueError("no rows")])
def test_a_trial_that_is_ended_from_outside_waits_to_be_done_again(
    ready: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: BaseException
) -> None:
    def ended(*_: Any, **__: Any) -> None:
        raise end

    monkeypatch.setattr("stages._trial.run", ended)
    project = ready.copy(tmp_path).give(
        sweep__space={"method": {"options": {"autodim": {"warm_up": {"low": 0.1, "high": 0.6}}}}}
    )
    with project.inside():
        params = _stage.params("sweep")
        swept = sweep.Sweep(params, Schema.load("artifacts/encoded/schema.json"))
        with pytest.raises(type(end)):
            swept.work_off(swept.open())
        first, again = swept.open().trials
    assert (first.state, again.state) == (TrialState.FAIL, TrialState.WAITING)
    assert again.system_attrs["fixed_params"] == first.params
    assert again.user_attrs == {"trial": 0, "retry": 1}


def start() -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", "stages.sweep"], stdout=subprocess.PIPE, text=True)


def wait_for(there: Any, process: subprocess.Popen[str]) -> Any:
    """What ``there`` finds while the process is at it; without that, the process ends too."""
    deadline = time.monotonic() + 120
    while (found := there()) is None:
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"the sweep ended too early, with {process.wait()}: {process.communicate()[0]}")
        time.sleep(0.005)
    return found


def study(project: Project) -> optuna.Study:
    """As a sweep opens it; call it inside the project."""
    return sweep.Sweep(_stage.params("sweep"), Schema.load("artifacts/encoded/schema.json")).open()


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """The address of a server of its own."""
    places = [str(path) for path in Path("/usr/lib/postgresql").glob("*/bin")]
    places += [str(Path(found).parent) for found in filter(None, [shutil.which("initdb")])]
    if not places or importlib.util.find_spec("psycopg") is None:
        pytest.skip("needs PostgreSQL and psycopg")
    owner: dict[str, Any] = {}
    folder = Path(tempfile.mkdtemp(prefix="pg"))  # short: the address of a socket is
    if os.getuid() == 0:  # whom the server refuses
        owner = {"user": "nobody", "group": "nogroup", "extra_groups": []}
        shutil.chown(folder, "nobody", "nogroup")
    environment = {"PATH": places[0] + os.pathsep + os.environ["PATH"], "LC_ALL": "C"}
    options = {"cwd": folder, "env": environment, "stdout": subprocess.DEVNULL, "check": True, **owner}
    data = folder / "data"
    try:
        subprocess.run(["initdb", "-A", "trust", "-U", "sweep", "-E", "UTF8", "--no-sync", "-D", data], **options)
        start = [
            "pg_ctl",
            "-w",
            "-D",
            data,
            "-l",
            folder / "log",
            "-o",
            f"-c listen_addresses='' -k {folder} -F",
            "start",
        ]
        subprocess.run(start, **options)
        yield f"postgresql://sweep@/postgres?host={folder}"
        subprocess.run(["pg_ctl", "-D", data, "-m", "immediate", "stop"], **options)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize(("storage", "workers"), [(None, 2), ("postgres", 4)])
def test_workers_lose_and_double_no_trial_though_one_is_killed(
    ready: Project, tmp_path: Path, request: pytest.FixtureRequest, storage: str | None, workers: int
) -> None:
    # takes some 15 s: each is a sweep of its own, with processes that import torch
    url = storage and request.getfixturevalue(storage)
    project = ready.copy(tmp_path).give(sweep__storage=url, sweep__workers=workers, sweep__trials=2 * workers)
    with project.inside():
        opened = study(project)
        process = start()
        victim = wait_for(lambda: at_work(opened), process)
        os.kill(int(victim.user_attrs["process"]["pipeline.pid"]), signal.SIGKILL)
        printed, _ = process.communicate(timeout=300)
        assert process.returncode == 0
        found = opened.get_trials()
        if url:
            opened._storage._backend.engine.dispose()  # type: ignore[attr-defined]
    assert len(set(re.findall(r"sweep: (trial-\d+): val AUC", printed))) == 2 * workers
    done = [trial for trial in found if trial.state == TrialState.COMPLETE]
    assert sorted(trial.user_attrs["trial"] for trial in done) == list(range(2 * workers))
    (again,) = (trial for trial in done if "retry" in trial.user_attrs)
    assert (again.user_attrs["trial"], again.params) == (victim.user_attrs["trial"], victim.params)
    assert found[victim.number].state == TrialState.FAIL
    pids = {trial.user_attrs["process"]["pipeline.pid"] for trial in found}
    assert len(pids) > workers / 2  # they did share the work
    assert [row["trial"] for row in trials(project)] == [str(number) for number in range(2 * workers)]


def at_work(opened: optuna.Study) -> Any:
    """A trial whose parameters are all drawn and whose end is still to come."""
    running = opened.get_trials(states=(TrialState.RUNNING,))
    return next((trial for trial in running if len(trial.params) == 7 and "trial" in trial.user_attrs), None)


def test_a_trial_that_kills_its_process_again_and_again_is_given_up() -> None:
    opened = optuna.create_study()
    drawn = []
    for _ in range(4):
        trial = opened.ask()
        trial.set_user_attr("trial", sweep.ordinal(opened, trial.number))
        drawn.append(trial.suggest_float("x", 0, 1))
        trial.set_user_attr("process", dead_process())
        sweep.reap(opened)
        sweep.reap(opened)
    assert [trial.user_attrs["trial"] for trial in opened.trials] == [0, 0, 0, 1, 1]
    assert drawn[0] == drawn[1] == drawn[2] != drawn[3]
    assert [trial.state.name for trial in opened.trials] == ["FAIL"] * 4 + ["WAITING"]


def dead_process() -> dict[str, str]:
    process = subprocess.Popen(["true"])
    with suppress(psutil.NoSuchProcess):
        started = psutil.Process(process.pid).create_time()
    process.wait()
    return {**this_process(), "pipeline.pid": str(process.pid), "pipeline.started": f"{started:.2f}"}


@pytest.mark.filterwarnings("ignore:Heartbeat of storage is supposed")
def test_in_a_database_the_trial_of_a_machine_that_has_gone_silent_is_done_again(
    ready: Project, tmp_path: Path
) -> None:
    database = tmp_path / "studies.db"
    with ready.copy(tmp_path / "project").give(sweep__storage=f"sqlite:///{database}").inside():
        opened = study(ready)
        trial = opened.ask()
        trial.set_user_attr("trial", 0)
        trial.set_user_attr("process", {**this_process(), "pipeline.host": "elsewhere"})
        trial.suggest_float("x", 0, 1)
        opened._storage.record_heartbeat(trial._trial_id)  # type: ignore[attr-defined]
        sweep.reap(opened)
        assert [t.state.name for t in opened.trials] == ["RUNNING"]
        with closing(sqlite3.connect(database)) as store:
            store.execute("update trial_heartbeats set heartbeat = '2020-01-01 00:00:00'")
            store.commit()
        sweep.reap(opened)
        assert [t.state.name for t in opened.trials] == ["FAIL", "WAITING"]
        assert opened.ask().suggest_float("x", 0, 1) == trial.params["x"]
        opened._storage._backend.engine.dispose()  # type: ignore[attr-defined]


def test_a_trial_whose_process_died_before_it_said_who_it_is_does_not_count_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened = optuna.create_study()
    opened.ask()
    sweep.reap(opened)
    assert sweep.counted(opened) == 1
    monkeypatch.setattr(sweep, "NAMELESS_SECONDS", -1)
    sweep.reap(opened)
    assert [trial.state.name for trial in opened.trials] == ["FAIL"]


def test_of_two_that_begin_the_last_trial_at_once_one_steps_back() -> None:
    opened = optuna.create_study()
    first, second, third = (opened.ask() for _ in range(3))
    assert [sweep.counted(opened, before=t.number, waiting=True) >= 2 for t in (first, second, third)] == [0, 0, 1]
    opened.tell(first, state=TrialState.FAIL)  # now the third is the second of two
    assert sweep.counted(opened, before=third.number, waiting=True) == 1
    opened.enqueue_trial({"x": 0.5})
    assert sweep.counted(opened) == 2 and sweep.counted(opened, waiting=True) == 3


def test_the_study_is_another_if_the_space_or_what_is_fixed_changes(ready: Project, tmp_path: Path) -> None:
    def name(**changes: Any) -> str:
        shutil.copy(ready.folder / "params.yaml", project.folder / "params.yaml")
        with project.give(**changes).inside():
            found = sweep.Sweep(_stage.params("sweep"), Schema.load("artifacts/encoded/schema.json")).name
        return found

    project = ready.copy(tmp_path)
    space = {"method": {"options": {"autodim": {"warm_up": [0.1, 0.6]}}}, "search": {"architecture": {"every": [1, 2]}}}
    narrower = {
        "method": {"options": {"autodim": {"warm_up": [0.1, 0.5]}}},
        "search": {"architecture": {"every": [1, 2]}},
    }
    ready = project.copy(tmp_path / "plain").give(sweep__space=space)
    plain = name()
    same = [
        {"sweep__trials": 9, "sweep__workers": 4, "sweep__storage": "sqlite:///x.db"},
        {"method__options__autodim__warm_up": 0.3, "search__architecture__every": 7},  # which the space says
        {"evaluate__resamples": 7},
    ]
    others = [
        {"sweep__space": narrower},
        {"sweep__seed": 1},
        {"sweep__sampler": "random"},
        {"sweep__objective": "budget", "sweep__budget": 0.5},
        {"search__epochs": 3},
        {"retrain__seeds": [1]},
        {"candidates__even": [2, 8]},
        {"derive__budget": 0.5},
    ]
    assert {name(**changes) for changes in same} == {plain}
    assert len({plain, *(name(**changes) for changes in others)}) == 1 + len(others)
    schema = tmp_path / "artifacts/encoded/schema.json"
    schema.write_text(json.dumps({**json.loads(schema.read_text()), "raw_sha256": "0" * 64}))
    assert name() != plain


# --- what users get wrong


def within(**space: Any) -> dict[str, Any]:
    return {"sweep__space": space}


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"sweep__trials": 0}, "params.yaml: sweep: trials must be a whole number of at least 1, however 0"),
    ({"sweep__sampler": "cma"}, "sweep: sampler must be one of ['tpe', 'random', 'nsga2'], however 'cma'"),
    ({"sweep__name": "a/b"}, "sweep: name must be of letters, digits, '_', '.', '-', however 'a/b'"),
    ({"sweep__objective": "budget"}, "sweep: objective 'budget' needs a sweep.budget"),
    ({"sweep__budget": 0.5}, "objective 'pareto' has no use for a sweep.budget; set it to null"),
    ({"sweep__objective": "budget", "sweep__budget": "25%"}, "budget must be a whole number of bytes above 1"),
    ({"sweep__space": {}}, "sweep: space is empty; name at least one parameter to search"),
    (within(search={"lr": 0.1}), "space: search: lr must be a list of choices, or a range {low: ..., high: ...}, how"),
    (within(search={"lr": [0.1]}), "space: search: lr must be at least two choices, and distinct, however [0.1]"),
    (within(search={"lr": {"low": 0.1}}), "space: search: lr: missing key 'high'; it has low, high"),
    (within(search={"lr": {"low": 0.1, "high": 0.01}}), "space: search: lr: low must be below high, however"),
    (within(search={"lr": {"low": 0, "high": 0.1, "log": True}}), "with log, low must be above 0, and there is no st"),
    (within(search={"lr": {"low": 0.1, "high": 1.0, "step": 0}}), "search: lr: step must be above 0"),
    (
        within(search={"rate": [1, 2]}),
        "space: search: params.yaml has no search.rate to search; there are architecture, batch_size",
    ),
    (within(search={"seed": [1, 2]}), "space: search.seed is not for a sweep to change; it may change what is in meth"),
    (within(dim=[8, 16]), "space: dim is not for a sweep to change; it may change what is in method.options, backbone"),
    (within(search={"epochs": [1, -1]}), "space allows search.epochs=-1, however: params.yaml: search: epochs must be"),
    (
        within(search={"candidates": ["planted", "paper"]}),
        "space allows search.candidates=paper, however: params.yaml: ",
    ),
    (
        within(search={"candidates": {"usr": ["planted", "even"]}}),
        "however: no field ['usr'] in the schema; there are [",
    ),
    (
        within(search={"architecture": {"every": [0, 1]}}),
        "space allows search.architecture.every=0, however: every and",
    ),
    (
        within(method={"options": {"autodim": {"temperature": {"start": [0.3, 1], "floor": {"low": 0.1, "high": 1}}}}}),
        "method.options.autodim.temperature.floor=1.0, however: temper",
    ),
    (
        {"sweep__storage": "postgresql://me:secret@localhost:1/x"},
        "sweep: storage postgresql://localhost:1/x is of no us",
    ),
    ({"sweep__storage": "nosuch"}, "sweep: storage nosuch is of no use: Could not parse"),
]


@pytest.mark.parametrize(("changes", "named"), WRONG, ids=[str(changes) for changes, _ in WRONG])
def test_a_wrong_sweep_is_refused_by_value_place_and_remedy_before_any_trial(
    ready: Project, tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    project = ready.copy(tmp_path)
    before = project.files()
    message = project.give(**changes).error("sweep")
    assert named in message and "secret" not in message
    assert project.files() == before and not list(tmp_path.glob(".pipeline/optuna/*"))


# --- parameters as commands


@pytest.mark.parametrize(
    ("base", "space", "drawn", "expected"),
    [
        ("small", ["small", {"default": "small", "user": "paper"}], {"default": "small", "user": "paper"}, None),
        ({"default": "small", "user": "paper"}, ["paper", "small"], "small", None),
        ({"default": "small", "zip": "paper"}, ["small", {"default": "paper", "user": "small"}], 1, None),
    ],
)
def test_a_command_gives_dvc_the_values_whatever_was_there(
    tmp_path: Path, base: Any, space: Any, drawn: Any, expected: None
) -> None:
    from dvc.utils.hydra import apply_overrides

    params = {"search": {"candidates": base, "lr": 0.1}}
    choices = _space.read({"search": {"candidates": space, "lr": {"low": 1e-6, "high": 1e-2, "log": True}}}, params)
    label = choices["search", "candidates"].labels()[space.index(drawn) if drawn in space else drawn]  # type: ignore[union-attr]
    values = {
        ("search", "candidates"): choices["search", "candidates"].value(label),
        ("search", "lr"): choices["search", "lr"].value(0.000010000321),
    }
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(params))
    apply_overrides(str(file), [word for word in shlex.split(_space.command(params, values))[3:] if word != "-S"])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert _stage.all_params() == _space.apply(params, values)
    assert values["search", "lr"] == 0.00001


def test_a_range_is_of_whole_numbers_where_the_parameter_is_one() -> None:
    params = {"search": {"lr": 0.1, "epochs": 4}}
    found = _space.read({"search": {name: {"low": 1, "high": 3} for name in params["search"]}}, params)
    assert found["search", "lr"] == _space.Range(1.0, 3.0) and not found["search", "lr"].whole  # type: ignore[union-attr]
    assert found["search", "epochs"].whole and found["search", "epochs"].value(2) == 2  # type: ignore[union-attr]
    assert found["search", "lr"].value(1.234567) == 1.235 and found["search", "lr"].value(2.99999) == 3.0
