"""The view of the runs table that `make ui` opens."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.tracking.place import EXPERIMENT
from pipeline.tracking.sync import synchronise
from pipeline.tracking.tracker import Tracker
from pipeline.tracking.view import ONLY_RESULTS
from stages import ui
from tests.servers import answers, free_address
from tests.tracking.conftest import Server
from tests.tracking.stores import CONFIGURATION, REPOSITORY, asking, search


@pytest.fixture
def configured(journal_only: Path) -> Path:
    """A repository with parameters."""
    (journal_only / "params.yaml").write_text((REPOSITORY / "params.yaml").read_text())
    return journal_only


class Served(Exception):
    """The command that would have served the store, and its environment."""


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch) -> None:
    def execve(path: str, command: list[str], environment: dict[str, str]) -> None:
        raise Served(command, environment)

    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # these tests still end on Ctrl-C


def test_the_view_has_a_row_for_each_configuration_of_the_main_job(configured: Path, serving: None) -> None:
    root = configured
    search(root)  # a parent and a run
    search(root, "k2", {"dim": 4})
    with Tracker(root, "sweep", "k3", {"trial": 1}, tags={"job": "sweep"}) as tracker:
        tracker.run()
    synchronise(root)
    with pytest.raises(Served):
        ui.run()
    with asking(root) as client:
        experiment = client.get_experiment_by_name(EXPERIMENT)
        state = json.loads(experiment.tags["mlflow.sharedViewState.results"])
        shown = client.search_runs([experiment.experiment_id], state["searchFilter"])
    assert state["searchFilter"] == ONLY_RESULTS
    assert {run.data.params["dim"] for run in shown} == {str(CONFIGURATION["dim"]), "4"} and len(shown) == 2
    assert "metrics.`searched/auc`" in state["selectedColumns"] and len(state["selectedColumns"]) <= 10


def test_the_newest_search_has_a_chart_for_each_field_with_all_its_candidates(
    configured: Path, serving: None, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("p/user/2", "p/user/16", "p/a/b/2", "p/a/b/16", "entropy")
    for key in ("k1", "k2"):
        with Tracker(configured, "search", key, CONFIGURATION) as tracker:
            tracker.run(seed=0).metrics(1, names, (0.5, 0.5, 0.25, 0.75, 1.0))
    synchronise(configured)
    with pytest.raises(Served):
        ui.run()
    assert "workflowType=machine_learning&compareRunsMode=CHART&viewStateShareKey=search\n" in capsys.readouterr().out
    with asking(configured) as client:
        experiment = client.get_experiment_by_name(EXPERIMENT)
        state = json.loads(experiment.tags["mlflow.sharedViewState.search"])
        (run,) = client.search_runs([experiment.experiment_id], state["searchFilter"])
    assert run.data.tags["pipeline.key"].endswith(":k2")
    shown = [set(chart["selectedMetricKeys"]) for chart in state["compareRunCharts"]]
    assert sorted(shown, key=min) == [{"p/a/b/2", "p/a/b/16"}, {"p/user/2", "p/user/16"}]


def test_the_page_of_the_view_is_printed_and_no_password_stands_in_the_command(
    configured: Path, serving: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_PORT", "5077")
    uri = f"sqlite:///{configured}/mlflow.db?password=secret"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(Served) as served:
        ui.run()
    command, environment = served.value.args
    assert command[:4] == [sys.executable, "-m", "mlflow", "ui"] and "secret" not in " ".join(command)
    assert environment["MLFLOW_BACKEND_STORE_URI"] == uri
    page = r"http://127\.0\.0\.1:5077/#/experiments/\d+/runs\?workflowType=machine_learning&viewStateShareKey=results"
    assert re.fullmatch(rf"A row .*: {page}\n", capsys.readouterr().out)


def test_on_ctrl_c_the_server_ends_without_a_traceback(
    configured: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    printed, address = tmp_path_factory.mktemp("ui") / "printed.txt", free_address()
    environment = {**os.environ, "MLFLOW_PORT": address.rpartition(":")[2], "PYTHONPATH": str(REPOSITORY)}
    with printed.open("wb") as file:
        command = [sys.executable, "-m", "stages.ui"]
        running = subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)
    try:
        assert answers(address), printed.read_text()
        os.killpg(running.pid, signal.SIGINT)  # as a terminal does
        running.wait(60)
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
            running.wait()
    assert f"{address}/#/experiments/" in printed.read_text() and "Traceback" not in printed.read_text()


def test_for_a_server_only_the_address_of_the_page_is_printed(
    configured: Path, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri.replace("://", "://me:secret@"))
    ui.run()
    printed = capsys.readouterr().out
    assert f"{server.uri}/#/experiments/" in printed and "secret" not in printed


def test_a_store_that_does_not_answer_and_a_wrong_task_are_told_in_one_line(
    configured: Path, serving: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{configured}/nowhere/mlflow.db")
    with pytest.raises(SystemExit, match=r"^error: the folder of the database does not exist: .*nowhere$"):
        ui.run()
    values = yaml.safe_load(Path("params.yaml").read_text())
    values["task"]["name"] = "ctrr"
    Path("params.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(ValueError, match="there is no task 'ctrr'"):
        ui.run()
