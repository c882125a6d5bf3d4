"""What the tests of tracking share: stages as processes, and questions to an MLflow store."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.tracking import store as store_module
from pipeline.tracking.follow import Follower
from pipeline.tracking.place import EXPERIMENT, meeting_mlflow
from pipeline.tracking.sync import synchronise
from pipeline.tracking.tracker import Tracker

REPOSITORY = Path(__file__).parents[2]
NAMES = ("arch/user/d02", "arch/user/d08", "arch/zip/d02")
CONFIGURATION = {"dim": 8, "search": {"lr": 0.1, "dims": [2, 8]}}
PUBLISHED = "artifacts/runs/search.jsonl"

ROUNDS = 3
CLONE = """
import sys
from pathlib import Path
from pipeline.tracking import store
from pipeline.tracking.place import meeting_mlflow
from pipeline.tracking.sync import synchronise
store.SETTLE_SECONDS = 0.5
with meeting_mlflow():
    import mlflow
for round in range(int(sys.argv[1])):
    print("ready", flush=True)
    sys.stdin.readline()
    published = [f"round-{round}/{stage}.jsonl" for stage in ("search", "evaluate")]
    synchronise(Path.cwd(), {"round": round}, published, experiment=f"round-{round}")
"""

STAGE = """
import sys, time
from pathlib import Path
from pipeline.tracking.tracker import Tracker
key, steps, *rest = sys.argv[1:]
wait = "wait" in rest
with Tracker(Path.cwd(), "search", key, {"dim": 8}, publish="artifacts/runs/search.jsonl", wait=wait) as tracker:
    run = tracker.run(seed=0)
    for step in range(int(steps)):
        run.metrics(step, ("loss", "auc"), (1 / (step + 1), 0.5))
    if "sleep" in rest:
        print("there", flush=True)
        time.sleep(60)
assert "mlflow" not in sys.modules and "torch" not in sys.modules
"""


@contextlib.contextmanager
def asking(store: str | Path) -> Iterator[Any]:
    """A client for the store at a URI or in a repository, without the warnings of third parties."""
    with meeting_mlflow():
        from mlflow import MlflowClient

        yield MlflowClient(f"sqlite:///{store / 'mlflow.db'}" if isinstance(store, Path) else store)


def runs(store: str | Path, experiment: str = EXPERIMENT, **tags: str) -> list[Any]:
    """All runs of a store with these tags (`_` for `.`)."""
    with asking(store) as client:
        known = client.get_experiment_by_name(experiment)
        found = client.search_runs([known.experiment_id]) if known else []
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


def journals(root: Path) -> list[str]:
    """What is in the folder of the journals, except for locks and the follower's state."""
    names = (path.name for path in (root / ".pipeline/tracking").iterdir())
    return sorted(name for name in names if not name.endswith(".lock") and not name.startswith("follow"))


def search(root: Path, key: str = "k1", configuration: dict[str, Any] = CONFIGURATION, **options: Any) -> None:
    """A stage in this process, with every kind of record."""
    (root / "allocation.json").write_text(key)
    tags = {"dataset": "planted"}
    with Tracker(root, "search", key, configuration, tags=tags, publish=PUBLISHED, **options) as tracker:
        run = tracker.run(seed=0, params={"optimizer": {"lr": 0.1}})
        for step in range(3):
            run.metrics(step, NAMES, (0.5, 0.25, float(step)))
        run.metrics(3, {"val/auc": 0.7123456789012345})
        run.tag("undecided", "user,zip")
        run.artifact("allocation.json", "decided")
        tracker.parent({"auc": 0.7}, {"verdict": "ok"}, ["allocation.json"])


def start(root: Path, *words: str) -> subprocess.Popen[str]:
    """A stage as a process: the key, the number of steps, and perhaps "wait" and "sleep"."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-W", "error", "-c", STAGE, *words]
    process = subprocess.Popen(
        command, cwd=root, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    if "sleep" in words:
        assert process.stdout is not None and process.stdout.readline() == "there\n"
    return process


def finished(process: subprocess.Popen[str]) -> None:
    """Wait for a stage, which must succeed and complain of nothing."""
    output, complaint = process.communicate()
    assert (process.returncode, output) == (0, ""), complaint
    assert all("uploading the journal" in line for line in complaint.splitlines()), complaint


def followers(root: Path) -> list[psutil.Process]:
    """The followers of a repository that are alive."""
    alive = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        if "pipeline.tracking.follow" in words and str(root) in words and process.info["status"] != "zombie":
            alive.append(process)
    return alive


def is_followed(root: Path) -> bool:
    """Whether a process holds the lock of the follower."""
    lock = Follower(root, EXPERIMENT).take()
    if lock:
        lock.close()
    return lock is None


def the_follower(root: Path) -> psutil.Process:
    """The one follower of a repository, which may just be starting."""
    until(lambda: [process.name() for process in followers(root)] not in ([], ["sh"]))
    [process] = followers(root)
    return process


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not become so in time"
        time.sleep(0.05)


def eventually(store: str | Path, status: str, seconds: float = 20, **tags: str) -> Any:
    """The first run with these tags once it has this status."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        matching = runs(store, **tags)
        if matching and matching[0].info.status == status:
            return matching[0]
        time.sleep(0.1)
    raise AssertionError(f"no run {tags} became {status}: {[(run.info.status, run.data.tags) for run in runs(store)]}")


def check_race(root: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two repositories synchronise at once with a server, and create every run once.

    Rounds of an experiment that does not exist, a parent, and 3 runs of 2 stages.
    """
    monkeypatch.setenv("PIPELINE_TRACKING", "journal")
    monkeypatch.setattr(store_module, "SETTLE_SECONDS", 0.5)
    for number in range(ROUNDS):
        for stage, seeds in (("search", 1), ("evaluate", 2)):
            place = f"round-{number}/{stage}.jsonl"
            with Tracker(root, stage, f"k{number}", {"round": number}, publish=place) as tracker:
                for seed in range(seeds):
                    tracker.run(seed=seed).metrics(0, {"auc": 0.5})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    (root / "clone").mkdir()
    for number in range(ROUNDS):
        (root / f"clone/round-{number}").symlink_to(root / f"round-{number}")
    shutil.rmtree(root / ".pipeline")
    command, environment = [sys.executable, "-c", CLONE, str(ROUNDS)], {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    pipe = subprocess.PIPE
    clone = subprocess.Popen(command, cwd=root / "clone", env=environment, stdin=pipe, stdout=pipe, text=True)
    assert clone.stdin is not None and clone.stdout is not None
    for number in range(ROUNDS):
        assert clone.stdout.readline() == "ready\n"
        clone.stdin.write("go\n")
        clone.stdin.flush()
        published = [f"round-{number}/{stage}.jsonl" for stage in ("search", "evaluate")]
        synchronise(root, {"round": number}, published, experiment=f"round-{number}")
    clone.communicate()
    assert clone.returncode == 0
    for number in range(ROUNDS):
        made = runs(uri, f"round-{number}")
        keys = Counter(run.data.tags.get("pipeline.key", "parent") for run in made)
        assert len(keys) == 4 and set(keys.values()) == {1}, keys
        assert {run.info.status for run in made} == {"FINISHED"}
        [parent] = [run for run in made if "pipeline.key" not in run.data.tags]
        assert not any(tag.startswith("pipeline.cached") for tag in parent.data.tags)
        assert {run.data.tags.get("mlflow.parentRunId") for run in made} == {None, parent.info.run_id}
        assert [run.data.metrics for run in made if "pipeline.key" in run.data.tags] == [{"auc": 0.5}] * 3
