"""The process that brings journals to the store while stages write them, and what happens when a process is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline.tracking import journal
from pipeline.tracking.follow import follow
from pipeline.tracking.place import EXPERIMENT, StoreError
from pipeline.tracking.sync import Inbox, synchronise
from pipeline.tracking.tracker import Tracker
from tests.servers import free_address
from tests.tracking.stores import (
    CONFIGURATION,
    NAMES,
    PUBLISHED,
    REPOSITORY,
    artifacts,
    eventually,
    finished,
    followers,
    history,
    is_followed,
    journals,
    parents,
    runs,
    search,
    start,
    the_follower,
    until,
)


def test_one_follower_serves_all_stages_even_if_it_was_started_by_hand(root: Path) -> None:
    """A stage that does not wait is brought in as well."""
    command = [sys.executable, "-m", "stages.sync", "--follow"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as follower:
        until(lambda: is_followed(root))
        assert not follow(root, EXPERIMENT, os.getpid())  # there is one already
        with Tracker(root, "ingest", "k0", CONFIGURATION) as tracker:
            tracker.run().metrics(0, {"rows": 600.0})
        search(root, wait=True)
        assert journals(root) == [] and followers(root) == []  # none but that one
        assert psutil.Process(follower.pid).nice() == 10
        follower.send_signal(signal.SIGINT)
        printed = follower.communicate()[0]
    assert follower.returncode == 0
    assert "ingest-k0.jsonl: run ingest" in printed and "search-k1.jsonl: run seed-0" in printed
    assert {run.info.status for run in runs(root)} == {"FINISHED"} and len(runs(root)) == 3
    [run] = runs(root, pipeline_stage="search")
    assert history(root, run, NAMES[2]) == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert artifacts(root, run) == ["decided/allocation.json"]
    assert artifacts(root, parents(root)[0]) == ["allocation.json"]


def test_a_killed_stage_is_marked_by_the_follower_and_resumed_in_the_same_run(root: Path) -> None:
    process = start(root, "k1", "5", "sleep")
    follower = the_follower(root)
    eventually(root, "RUNNING", pipeline_stage="search")
    process.kill()
    process.communicate()
    killed = eventually(root, "KILLED", pipeline_stage="search")
    assert killed.data.metrics == {"loss": 0.2, "auc": 0.5}
    until(lambda: [parent.info.status for parent in parents(root)] == ["KILLED"])  # it is marked after the run
    with (root / ".pipeline/tracking/search-k1.jsonl").open("a") as file:
        file.write("[0,5,[0.1")  # torn by the kill
    finished(start(root, "k1", "8", "wait"))
    assert followers(root) == [follower]
    [run] = runs(root, pipeline_stage="search")
    assert (run.info.run_id, run.info.status) == (killed.info.run_id, "FINISHED")
    assert [step for step, _ in history(root, run, "loss")] == list(range(8))
    lines = [line for line in Path(PUBLISHED).read_text().splitlines() if line.startswith("[")]
    assert [line.split(",")[1] for line in lines] == list(map(str, range(8)))


def test_a_killed_follower_is_replaced_and_then_marks_what_was_killed_with_it(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIPELINE_TRACKING", "journal")
    lost = start(root, "k1", "1", "sleep")
    Inbox(root, EXPERIMENT, follow=True).bring_in()  # a follower, which comes no further
    lost.kill()
    lost.communicate()
    assert runs(root, pipeline_stage="search")[0].info.status == "RUNNING"
    monkeypatch.delenv("PIPELINE_TRACKING")
    with Tracker(root, "retrain", "k2", CONFIGURATION, wait=True) as tracker:
        tracker.run(seed=0).metrics(0, {"loss": 1.0})
        the_follower(root).kill()
        until(lambda: not is_followed(root))
    statuses = {run.info.run_name: run.info.status for run in runs(root) if "pipeline.stage" in run.data.tags}
    assert statuses == {"search/seed-0": "KILLED", "retrain/seed-0": "FINISHED"}
    assert journals(root) == ["search-k1.jsonl"]  # where the stage will continue


def test_a_server_that_is_down_costs_one_warning_and_synchronising_brings_all_in(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", free_address().replace("http://", "http://user:secret@"))
    began = time.monotonic()
    search(root, wait=True)
    assert time.monotonic() - began < 10
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "stages.sync" in caplog.text and "secret" not in caplog.text
    assert journals(root) == ["search-k1.files", "search-k1.jsonl"]
    with pytest.raises(StoreError, match="does not accept the records"):
        synchronise(root)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    synchronise(root)
    [run] = runs(root, pipeline_stage="search")
    assert run.info.status == "FINISHED"
    assert journals(root) == []


def test_four_processes_may_meet_on_a_store_that_does_not_exist(root: Path) -> None:
    (root / "mlflow.db").unlink()
    for process in [start(root, f"k{number}", "2", "wait") for number in range(4)]:
        finished(process)
    assert len(followers(root)) == 1
    assert len(parents(root)) == 1
    assert [run.info.status for run in runs(root, pipeline_stage="search")] == ["FINISHED"] * 4


def test_two_writers_of_the_same_content_share_a_run_which_is_complete_with_the_first_that_ends(
    journal_only: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "OPEN_SECONDS", 0.1)
    root, inbox = journal_only, Inbox(journal_only, EXPERIMENT, follow=True)
    with pytest.raises(SystemExit), Tracker(root, "search", "k1", CONFIGURATION) as late:
        late_run = late.run(seed=0)
        late_run.metrics(0, {"loss": 1.0})
        inbox.bring_in()
        with Tracker(root, "search", "k1", CONFIGURATION) as early:
            early_run = early.run(seed=0)
            for step in range(3):
                early_run.metrics(step, {"loss": 1 / (step + 1)})
            inbox.bring_in()
            assert [run.info.status for run in runs(root)] == ["RUNNING"] * 2
        inbox.bring_in()
        assert journals(root) == ["search-k1.jsonl"]
        late_run.metrics(3, {"loss": 0.0})
        late_run.tag("late", "yes")
        inbox.bring_in()
        raise SystemExit(143)
    inbox.bring_in()
    assert inbox.waiting() == []
    [run] = runs(root, pipeline_stage="search")
    assert run.info.status == "FINISHED" and "late" not in run.data.tags
    assert history(root, run, "loss") == [(0, 1.0), (1, 1 / 2), (2, 1 / 3)]


def test_a_parent_is_running_as_long_as_one_of_its_stages_is(journal_only: Path) -> None:
    root, inbox = journal_only, Inbox(journal_only, EXPERIMENT, follow=True)
    process = start(root, "k1", "1", "sleep")
    inbox.bring_in()
    with Tracker(root, "derive", "k2", {"dim": 8}) as tracker:
        tracker.run()
        inbox.bring_in()
    inbox.bring_in()
    assert [run.info.status for run in runs(root, pipeline_stage="derive")] == ["FINISHED"]
    assert [parent.info.status for parent in parents(root)] == ["RUNNING"]
    process.kill()
    process.communicate()
    inbox.bring_in()
    assert [parent.info.status for parent in parents(root)] == ["KILLED"]


def test_a_follower_leaves_alone_what_is_meant_for_another_store_or_experiment(
    journal_only: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = journal_only
    search(root, "k1")
    search(root, "k2", experiment="other")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")
    search(root, "k3")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with Tracker(root, "search", "k4", CONFIGURATION) as tracker:
        tracker.run()
        follower, all_in = (Inbox(root, EXPERIMENT, follow=follow) for follow in (True, False))
        assert [(path.name, written) for path, written in follower.waiting()] == [
            ("search-k1.jsonl", False),
            ("search-k4.jsonl", True),
        ]
        assert len(all_in.waiting()) == 4
    synchronise(root)
    assert journals(root) == [] and len(runs(root, pipeline_stage="search")) == 4
