"""What the tests of tracking share: stages as processes, and questions to an MLflow store."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from pipeline.tracking.follow import Follower
from pipeline.tracking.place import EXPERIMENT, meeting_mlflow
from pipeline.tracking.tracker import Tracker

REPOSITORY = Path(__file__).parents[2]
NAMES = ("arch/user/d02", "arch/user/d08", "arch/zip/d02")
CONFIGURATION = {"dim": 8, "search": {"lr": 0.1, "dims": [2, 8]}}
PUBLISHED = "artifacts/runs/search.jsonl"

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
