import contextlib
import json
import math
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.tracking import StoreError, Tracker, configuration_key, synchronise
from pipeline.tracking.place import meeting_mlflow
from stages import sync

REPOSITORY = Path(__file__).parents[1]
NAMES = ("arch/user/d02", "arch/user/d08", "arch/zip/d02")
CONFIGURATION = {"dim": 8, "search": {"lr": 0.1, "dims": [2, 8]}}
PUBLISHED = "artifacts/runs/search.jsonl"

LATER = """
import sys
from pathlib import Path
from pipeline.tracking import Tracker
with Tracker(Path.cwd(), "ingest", "k0", {"dim": 8}, later=True) as tracker:
    tracker.run().metrics(0, {"rows": 600.0})
assert "mlflow" not in sys.modules
"""

SEARCH = """
import os, sys, time
from pathlib import Path
from pipeline.tracking import Tracker
with Tracker(Path.cwd(), "search", sys.argv[1], {"dim": 8}, publish="artifacts/runs/search.jsonl") as tracker:
    run = tracker.run(seed=0)
    for step in range(int(sys.argv[2])):
        run.metrics(step, ("loss", "auc"), (1 / (step + 1), 0.5))
    if len(sys.argv) > 3:
        print("there", flush=True)
        time.sleep(60)
"""


@contextlib.contextmanager
def asking(store: str | Path) -> Iterator[Any]:
    """A client for the store at a URI or in a repository; warnings that third parties give among themselves are off."""
    with meeting_mlflow():
        from mlflow import MlflowClient

        yield MlflowClient(f"sqlite:///{store / 'mlflow.db'}" if isinstance(store, Path) else store)


@pytest.fixture
def root(tmp_path: Path, migrated: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(migrated, tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "PIPELINE_TRACKING", "DVC_ROOT", "DVC_EXP_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def runs(store: str | Path, **tags: str) -> list[Any]:
    """All runs of a store with these tags (`_` for `.`)."""
    with asking(store) as client:
        found = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    wanted = {name.replace("_", "."): value for name, value in tags.items()}
    return [run for run in found if wanted.items() <= run.data.tags.items()]


def parents(store: str | Path) -> list[Any]:
    return [run for run in runs(store) if "pipeline.configuration" in run.data.tags]


def history(store: str | Path, run: Any, key: str) -> list[tuple[int, float]]:
    with asking(store) as client:
        return sorted((point.step, point.value) for point in client.get_metric_history(run.info.run_id, key))


def artifacts(root: Path, run: Any) -> list[str]:
    place = root / "mlartifacts" / run.info.run_id / "artifacts"
    return sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())


def spools(root: Path) -> list[str]:
    return sorted(path.name for path in (root / ".pipeline/tracking").iterdir() if path.name != "lock")


def search(root: Path, key: str = "k1", configuration: dict[str, Any] = CONFIGURATION, steps: int = 3) -> None:
    (root / "allocation.json").write_text(key)
    with Tracker(root, "search", key, configuration, tags={"dataset": "planted"}, publish=PUBLISHED) as tracker:
        run = tracker.run(seed=0, params={"optimizer": {"lr": 0.1}})
        for step in range(steps):
            run.metrics(step, NAMES, (0.5, 0.25, float(step)))
        run.metrics(steps, {"val/auc": 0.7123456789012345})
        run.tag("undecided", "user,zip")
        run.artifact("allocation.json", "decided")
        tracker.parent({"auc": 0.7}, {"verdict": "ok"}, ["allocation.json"])


def start(root: Path, *words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-W", "error", "-c", SEARCH, *words]
    return subprocess.Popen(
        command, cwd=root, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def eventually(root: Path, status: str, seconds: float = 15, **tags: str) -> Any:
    """The first run with these tags once it has this status."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = runs(root, **tags)
        if found and found[0].info.status == status:
            return found[0]
        time.sleep(0.2)
    raise AssertionError(f"no run {tags} became {status}: {[(run.info.status, run.data.tags) for run in runs(root)]}")


@pytest.fixture
def closed_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def test_a_run_holds_what_the_stage_recorded(root: Path) -> None:
    search(root)
    [run] = runs(root, pipeline_stage="search")
    [parent] = parents(root)
    assert run.info.status == parent.info.status == "FINISHED"
    assert run.info.run_name == "search/seed-0"
    assert run.data.params == {"optimizer.lr": "0.1"}
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert run.data.tags["dataset"] == parent.data.tags["dataset"] == "planted"
    assert run.data.tags["undecided"] == "user,zip"
    assert history(root, run, NAMES[2]) == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert run.data.metrics["val/auc"] == 0.7123456789012345
    assert parent.data.params == {"dim": "8", "search.lr": "0.1", "search.dims": "[2, 8]"}
    assert parent.data.metrics == {"auc": 0.7}
    assert parent.data.tags["verdict"] == "ok"
    assert artifacts(root, run) == ["decided/allocation.json"]
    assert artifacts(root, parent) == ["allocation.json"]
    assert spools(root) == []
    assert Path(PUBLISHED).is_file()


def test_running_again_adds_no_run_and_no_point(root: Path) -> None:
    search(root)
    search(root)
    assert len(runs(root)) == 2
    [run] = runs(root, pipeline_stage="search")
    assert history(root, run, NAMES[0]) == [(0, 0.5), (1, 0.5), (2, 0.5)]
    assert run.info.status == "FINISHED"


def test_two_stages_of_one_configuration_share_a_parent_and_seeds_have_runs_of_their_own(root: Path) -> None:
    search(root)
    with Tracker(root, "retrain", "k2", CONFIGURATION) as tracker:
        for name in ("searched/seed-0", "searched/seed-1"):
            run = tracker.run(name, params={"seed": name[-1]})
            run.metrics(0, {"loss": 0.5})
            run.end()
    [parent] = parents(root)
    retrained = runs(root, pipeline_stage="retrain")
    assert {run.info.run_name for run in retrained} == {"retrain/searched/seed-0", "retrain/searched/seed-1"}
    assert {run.data.tags["mlflow.parentRunId"] for run in retrained} == {parent.info.run_id}


def test_a_changed_configuration_links_a_cached_stage_and_does_not_repeat_it(root: Path) -> None:
    search(root)
    [run] = runs(root, pipeline_stage="search")
    changed = {**CONFIGURATION, "retrain": {"epochs": 3}}
    synchronise(root, changed, [PUBLISHED])
    assert [found.info.run_id for found in runs(root, pipeline_stage="search")] == [run.info.run_id]
    [parent] = runs(root, pipeline_configuration=configuration_key(changed))
    assert parent.data.tags["pipeline.cached.search"] == run.info.run_id
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics == {"auc": 0.7}
    search(root, "k3", changed)  # its own now
    [parent] = runs(root, pipeline_configuration=configuration_key(changed))
    assert "pipeline.cached.search" not in parent.data.tags


def test_synchronising_fills_another_store_and_a_second_time_changes_nothing(
    root: Path, migrated: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    search(root)
    [run] = runs(root, pipeline_stage="search")
    shutil.copy(migrated, root / "new.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///new.db")
    capfd.readouterr()
    for answer in ("brought in, 10 points", "was complete"):
        [line] = synchronise(root, CONFIGURATION, [PUBLISHED])
        assert answer in line
        assert capfd.readouterr() == ("", "")
        [again] = runs(f"sqlite:///{root}/new.db", pipeline_stage="search")
        assert again.data.params == run.data.params
        assert again.data.metrics == run.data.metrics
        assert again.info.start_time == run.info.start_time
        assert history(f"sqlite:///{root}/new.db", again, NAMES[2]) == [(0, 0.0), (1, 1.0), (2, 2.0)]
        assert artifacts(root, again) == ["decided/allocation.json"]


def test_an_artifact_that_has_changed_since_is_not_uploaded_but_named(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIPELINE_TRACKING", "journal")
    search(root)
    shutil.rmtree(root / ".pipeline")
    Path("allocation.json").write_text("another")
    lines = synchronise(root, CONFIGURATION, [PUBLISHED])
    assert any("artifact allocation.json of run seed-0 is gone or has changed" in line for line in lines)
    [run] = runs(root, pipeline_stage="search")
    assert artifacts(root, run) == []


def test_journal_only_leaves_a_spool_that_synchronising_brings_in(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_TRACKING", "journal")
    search(root)
    assert spools(root) == ["search-k1.files", "search-k1.jsonl"]
    Path("allocation.json").unlink()  # the journal has its own copy
    synchronise(root)
    [run] = runs(root, pipeline_stage="search")
    assert run.info.status == "FINISHED"
    assert artifacts(root, run) == ["decided/allocation.json"]
    assert spools(root) == []


def test_what_a_stage_leaves_for_later_comes_with_the_next_one(root: Path) -> None:
    began = time.time() - 60
    with Tracker(root, "ingest", "k0", CONFIGURATION, later=True) as tracker:
        tracker.run(started=began).metrics(0, {"rows": 600.0})
    assert spools(root) == ["ingest-k0.jsonl"]
    search(root)
    assert spools(root) == []
    [ingested] = runs(root, pipeline_stage="ingest")
    assert (ingested.info.status, ingested.data.metrics) == ("FINISHED", {"rows": 600.0})
    assert ingested.info.start_time == int(began * 1000)
    [parent] = parents(root)
    assert ingested.data.tags["mlflow.parentRunId"] == parent.info.run_id


def test_what_a_stage_leaves_for_later_comes_without_a_next_one_too(root: Path) -> None:
    script = root / "later.py"
    script.write_text(LATER)
    shell = f"{shlex.quote(sys.executable)} {shlex.quote(str(script))}; true"  # the shell is what runs the stages
    subprocess.run(["sh", "-c", shell], cwd=root, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, check=True)
    ingested = eventually(root, "FINISHED", pipeline_stage="ingest")
    assert ingested.data.metrics == {"rows": 600.0}


def test_the_next_stage_marks_one_that_was_killed_before_it_left_anything(root: Path) -> None:
    code = LATER.replace("tracker.run().metrics", "import os; tracker.run(); os.kill(os.getpid(), 9) #")
    died = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, check=False
    )
    assert died.returncode == -signal.SIGKILL
    search(root)
    assert [run.info.status for run in runs(root, pipeline_stage="ingest")] == ["KILLED"]
    status = {parent.data.tags["pipeline.configuration"]: parent.info.status for parent in parents(root)}
    assert status == {configuration_key({"dim": 8}): "KILLED", configuration_key(CONFIGURATION): "FINISHED"}
    assert spools(root) == ["ingest-k0.jsonl"]  # where the stage will continue


def test_runs_and_their_parent_name_the_dataset_once(root: Path) -> None:
    dataset = {"name": "planted", "digest": "a" * 36, "source": "data"}
    for stage in ("search", "retrain", "search"):
        with Tracker(root, stage, "k1", CONFIGURATION, dataset=dataset) as tracker:
            tracker.run(seed=0)
    found = runs(root)
    assert len(found) == 3
    for run in found:
        [given] = run.inputs.dataset_inputs
        assert (given.dataset.name, given.dataset.digest) == ("planted", "a" * 36)
        assert json.loads(given.dataset.source) == {"uri": "data"}


def test_a_killed_stage_is_marked_by_the_uploader_and_resumed_in_the_same_run(root: Path) -> None:
    process = start(root, "k1", "5", "wait")
    assert process.stdout is not None and process.stdout.readline() == "there\n"
    eventually(root, "RUNNING", pipeline_stage="search")
    process.kill()
    process.communicate()
    killed = eventually(root, "KILLED", pipeline_stage="search")
    assert killed.data.metrics == {"loss": 0.2, "auc": 0.5}
    [parent] = parents(root)
    assert parent.info.status == "KILLED"

    journal = root / ".pipeline/tracking/search-k1.jsonl"
    with journal.open("a") as file:
        file.write("[0,5,[0.1")  # torn by the kill
    output, complaint = start(root, "k1", "8").communicate()
    assert output == ""
    assert all("bringing the journal" in line for line in complaint.splitlines()), complaint
    [run] = runs(root, pipeline_stage="search")
    assert (run.info.run_id, run.info.status) == (killed.info.run_id, "FINISHED")
    assert [step for step, _ in history(root, run, "loss")] == list(range(8))
    lines = [json.loads(line) for line in Path(PUBLISHED).read_text().splitlines()]
    assert [line[1] for line in lines if isinstance(line, list)] == list(range(8))


def test_the_next_tracker_reaps_runs_whose_process_and_uploader_are_both_dead(root: Path) -> None:
    import psutil

    process = start(root, "k1", "1", "wait")
    assert process.stdout is not None and process.stdout.readline() == "there\n"
    eventually(root, "RUNNING", pipeline_stage="search")
    for child in psutil.Process(process.pid).children():
        child.kill()
    process.kill()
    process.communicate()
    assert runs(root, pipeline_stage="search")[0].info.status == "RUNNING"
    search(root, "k2")
    assert {run.info.status for run in runs(root, pipeline_key="search/seed-0:k1")} == {"KILLED"}


@pytest.mark.parametrize(("error", "status"), [(ValueError("bad"), "FAILED"), (SystemExit(143), "KILLED")])
def test_a_run_ends_as_its_block_does(root: Path, error: BaseException, status: str) -> None:
    with pytest.raises(type(error)), Tracker(root, "search", "k1", CONFIGURATION, publish=PUBLISHED) as tracker:
        tracker.run(seed=0)
        raise error
    [run] = runs(root, pipeline_stage="search")
    assert run.info.status == status
    assert run.data.tags["pipeline.error"] == f"{type(error).__name__}: {error}"
    assert spools(root) == ["search-k1.jsonl"]
    assert not Path(PUBLISHED).exists()


def test_a_server_that_is_down_costs_one_warning_and_synchronising_brings_all_in(
    root: Path, closed_port: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", closed_port)
    started = time.monotonic()
    search(root)
    assert time.monotonic() - started < 10
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "stages.sync" in caplog.text
    assert spools(root) == ["search-k1.files", "search-k1.jsonl"]
    with pytest.raises(StoreError, match="does not take the records"):
        synchronise(root)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    synchronise(root)
    [run] = runs(root, pipeline_stage="search")
    assert run.info.status == "FINISHED"
    assert spools(root) == []


@pytest.fixture
def server(root: Path, closed_port: str) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    import requests

    store = ["--backend-store-uri", f"sqlite:///{root / 'mlflow.db'}", "--artifacts-destination", str(root / "served")]
    listen = ["--host", "127.0.0.1", "--port", closed_port.rpartition(":")[2], "--workers", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", *store, *listen],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        start_new_session=True,
    )
    try:
        for _ in range(200):
            try:
                if requests.get(f"{closed_port}/health", timeout=1).ok:
                    break
            except (requests.ConnectionError, requests.Timeout):
                time.sleep(0.1)
        else:
            pytest.skip("mlflow server did not start within 20 s")
        yield closed_port, process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_server_that_dies_midway_gets_the_rest_later(
    root: Path,
    server: tuple[str, "subprocess.Popen[bytes]"],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    uri, process = server
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    search(root)  # all over HTTP once: runs, params, metrics, artifacts
    [run] = runs(root, pipeline_stage="search")
    assert run.data.metrics == {NAMES[0]: 0.5, NAMES[1]: 0.25, NAMES[2]: 2.0, "val/auc": 0.7123456789012345}
    assert list((root / "served").rglob("allocation.json"))
    with Tracker(root, "retrain", "k2", CONFIGURATION, publish="artifacts/runs/retrain.jsonl") as tracker:
        retrain = tracker.run(seed=0)
        retrain.metrics(0, {"loss": 1.0})
        eventually(root, "RUNNING", pipeline_stage="retrain")
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for step in range(5):  # step 0 for the second time: dropped
            retrain.metrics(step, {"loss": 0.5})
    assert len(caplog.records) == 1
    assert spools(root) == ["retrain-k2.jsonl"]
    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # the server's own database
    for _ in range(2):
        synchronise(root, CONFIGURATION, ["artifacts/runs/retrain.jsonl"])
        [retrained] = runs(root, pipeline_stage="retrain")
        assert history(root, retrained, "loss") == [(0, 1.0), (1, 0.5), (2, 0.5), (3, 0.5), (4, 0.5)]
        assert retrained.info.status == "FINISHED"
        assert len(runs(root)) == 3


def test_four_processes_may_meet_on_a_store_that_does_not_exist(root: Path) -> None:
    (root / "mlflow.db").unlink()
    processes = [start(root, f"k{number}", "2") for number in range(4)]
    assert [process.communicate()[0] for process in processes] == [""] * 4
    assert [process.returncode for process in processes] == [0] * 4
    assert len(parents(root)) == 1
    assert [run.info.status for run in runs(root, pipeline_stage="search")] == ["FINISHED"] * 4


def test_infinity_becomes_a_tag_and_nan_stays(root: Path) -> None:
    with Tracker(root, "search", "k1", CONFIGURATION) as tracker:
        run = tracker.run()
        run.metrics(0, ("a", "b"), (math.inf, math.nan))
        run.metrics(1, {"c": -math.inf, "d": math.nan})
        tracker.parent({"ratio": math.inf})
    [found] = runs(root, pipeline_stage="search")
    assert found.data.metrics.keys() == {"b", "d"}
    assert all(map(math.isnan, found.data.metrics.values()))
    assert found.data.tags["nonfinite.a"] == "inf at step 0"
    assert found.data.tags["nonfinite.c"] == "-inf at step 1"
    assert parents(root)[0].data.tags["nonfinite.ratio"] == "inf"


def test_names_and_values_that_mlflow_refuses_are_made_fit(root: Path) -> None:
    long = "x" * 7000
    awkward = ("arch/hour=0|1", "arch/hour=0[1", "../up", "a//b", "n" * 300, "größe")
    with Tracker(root, "search", "k1", {"note": long, "list": [1, None]}) as tracker:
        run = tracker.run(params={"feature, odd": long})
        run.metrics(0, awkward, range(6))
        run.tag("odd=tag", "t" * 9000)
    [found] = runs(root, pipeline_stage="search")
    assert sorted(found.data.metrics.values()) == [0, 1, 2, 3, 4, 5]
    assert found.data.metrics["größe"] == 5
    [(key, value)] = found.data.params.items()
    assert key.startswith("feature_ odd-")
    assert len(value) == 6000 and "sha256:" in value


def test_long_series_thin_out_but_keep_their_end(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with meeting_mlflow():
        from pipeline.tracking import replay
    monkeypatch.setenv("PIPELINE_TRACKING", "journal")
    monkeypatch.setattr(replay, "EVERY_STEP", 10)
    with Tracker(root, "search", "k1", CONFIGURATION) as tracker:
        run = tracker.run()
        for step in range(44):
            run.metrics(step, ("loss",), (float(step),))
    synchronise(root)
    [found] = runs(root, pipeline_stage="search")
    steps = [*range(10), 10, 12, 14, 16, 18, 20, 24, 28, 32, 36, 40, 43]
    assert history(root, found, "loss") == [(step, float(step)) for step in steps]


def test_a_file_that_moves_on_is_found_again_where_it_went(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_TRACKING", "journal")
    Path("draft").mkdir()
    Path("draft/allocation.json").write_text("decided")
    with Tracker(root, "retrain", "k1", CONFIGURATION, publish=PUBLISHED) as tracker:
        tracker.run().artifact("draft/allocation.json", output="models/allocation.json")
    Path("draft").rename("models")
    shutil.rmtree(root / ".pipeline")
    synchronise(root, CONFIGURATION, [PUBLISHED])
    [run] = runs(root, pipeline_stage="retrain")
    assert artifacts(root, run) == ["allocation.json"]


def test_a_parent_of_which_a_stage_was_killed_finishes_when_all_stages_are_there(root: Path) -> None:
    search(root)
    with pytest.raises(SystemExit), Tracker(root, "retrain", "k2", CONFIGURATION) as tracker:
        tracker.run()
        raise SystemExit(143)
    for complete, status in ((False, "KILLED"), (True, "FINISHED")):
        synchronise(root, CONFIGURATION, [PUBLISHED], complete=complete)
        assert [parent.info.status for parent in parents(root)] == [status]


def test_wrong_use_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_TRACKING", "journal")
    with pytest.raises(ValueError, match="name a file"):
        Tracker(root, "search", "a/b", CONFIGURATION)
    with Tracker(root, "search", "k1", CONFIGURATION) as tracker:
        run = tracker.run(seed=0)
        with pytest.raises(ValueError, match="must be new"):
            tracker.run(seed=0)
        with pytest.raises(ValueError, match="2 names for 1 values"):
            run.metrics(0, ("a", "b"), (1.0,))
        with pytest.raises(FileNotFoundError):
            run.artifact("nowhere.json")
        run.end()
        with pytest.raises(ValueError, match="has ended"):
            run.metrics(0, {"a": 1.0})
    with pytest.raises(ValueError, match="configuration"):
        synchronise(root, None, [PUBLISHED])


def test_recording_needs_no_mlflow_import_in_the_stage(root: Path) -> None:
    code = SEARCH + "\nassert 'mlflow' not in sys.modules and 'torch' not in sys.modules"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PIPELINE_TRACKING": "journal"}
    done = subprocess.run([sys.executable, "-c", code, "k1", "2"], cwd=root, env=environment, check=False)
    assert done.returncode == 0


def test_sync_stops_before_the_first_stage_that_params_have_left_behind(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {"dim": 8, "search": {"lr": 0.1}}
    Path("params.yaml").write_text(yaml.safe_dump(values))
    Path("dvc.yaml").write_text("stages: {search: {}, retrain: {}}")
    monkeypatch.setenv("PIPELINE_TRACKING", "journal")
    for stage in ("search", "retrain"):
        with Tracker(root, stage, "k1", values, publish=f"artifacts/runs/{stage}.jsonl") as tracker:
            tracker.run()
    shutil.rmtree(root / ".pipeline")
    locked = {
        "search": {"params": {"params.yaml": {"search.lr": 0.1}}},
        "retrain": {"params": {"params.yaml": {"dim": 4}}},
    }
    Path("dvc.lock").write_text(yaml.safe_dump({"stages": locked}))
    sync.run()
    printed = capsys.readouterr()
    assert "run search" in printed.out
    assert "retrain and what follows are not synchronised: dim changed since" in printed.err
    assert len(runs(root)) == 2
    locked["retrain"]["params"]["params.yaml"]["dim"] = 8
    Path("dvc.lock").write_text(yaml.safe_dump({"stages": locked}))
    sync.run()
    assert {run.data.tags.get("pipeline.stage") for run in runs(root)} == {None, "search", "retrain"}
    assert len(parents(root)) == 1


def test_what_dvc_restores_comes_into_a_new_store(root: Path, migrated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two real stages under a real DVC; some seconds, for it is the only proof that the parts fit."""

    def dvc(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "dvc", *words],
            env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def made(store: str | Path) -> list[Any]:
        return [
            (run.info.run_name, run.info.status, artifacts(root, run), run.data.metrics, run.data.params, run.inputs)
            for run in sorted(runs(store), key=lambda run: run.info.run_name)
        ]

    for name in ("pipeline", "stages"):
        shutil.copytree(REPOSITORY / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "dvc.yaml", root)
    values = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    values["dataset"]["options"]["rows"] = 1000
    for section in ("sweep", "stream"):  # are no part of the pipeline, nor of its name
        del values[section]
    Path("params.yaml").write_text(yaml.safe_dump(values))
    Path("data").mkdir()
    dvc("init", "--no-scm", "--quiet")
    assert "Running stage 'encode'" in dvc("repro", "encode")
    for stage in ("ingest", "encode"):  # each is brought in by a process of its own, in no certain order
        eventually(root, "FINISHED", pipeline_stage=stage)
    first = made(root)
    assert [row[:3] for row in first] == [
        ("encode", "FINISHED", ["schema.json"]),
        ("ingest", "FINISHED", ["raw.json"]),
        (f"pipeline {configuration_key(values)[:8]}", "FINISHED", []),
    ]
    shutil.rmtree("artifacts")
    shutil.copy(migrated, root / "new.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///new.db")
    assert "Running stage" not in dvc("repro", "encode")
    assert made(f"sqlite:///{root}/new.db") == []
    for _ in range(2):
        sync.run()
        assert repr(made(f"sqlite:///{root}/new.db")) == repr(first)
