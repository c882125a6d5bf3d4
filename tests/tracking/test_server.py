"""Runs on an MLflow server, which several repositories may share."""

import time
from pathlib import Path

import pytest

from pipeline.tracking import store as store_module
from pipeline.tracking.journal import now
from pipeline.tracking.place import meeting_mlflow
from pipeline.tracking.store import Store, Superseded
from pipeline.tracking.sync import synchronise
from pipeline.tracking.tracker import Tracker
from tests.tracking.conftest import Server
from tests.tracking.stores import (
    CONFIGURATION,
    NAMES,
    PUBLISHED,
    check_race,
    eventually,
    history,
    journals,
    runs,
    search,
)


def test_two_repositories_that_synchronise_at_once_create_every_run_once(
    root: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_race(root, server.uri, monkeypatch)


def test_of_two_runs_for_one_key_both_repositories_choose_the_same(
    root: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    with meeting_mlflow():
        stores = [Store(root, "race"), Store(root, "race")]
        unseen = iter([True, True])
        search_again = Store._runs_with

        def blind(self: Store, tag: str, value: str) -> list[object]:
            return [] if next(unseen, False) else search_again(self, tag, value)

        monkeypatch.setattr(Store, "_runs_with", blind)  # neither sees the other's run before it creates its own
        start = now()
        created = [store.obtain("pipeline.key", "k", start, "run", {})[0].info.run_id for store in stores]
        assert created[0] != created[1]
        lost = []
        for number, store in enumerate(stores):
            try:
                store.settle()
            except Superseded:
                lost.append(created[number])
        [left] = runs(server.uri, "race")
        assert sorted([left.info.run_id, *lost]) == sorted(created)
        assert [store.obtain("pipeline.key", "k", start, "run", {})[1] for store in stores] == [False, False]


def test_a_run_that_was_created_too_slowly_for_others_to_see_is_not_kept(
    root: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setattr(store_module, "SETTLE_SECONDS", 0.4)
    with meeting_mlflow():
        store = Store(root, "slow")
        create, delays = store._client.create_run, iter([0.4])

        def slow(*values: object) -> object:
            time.sleep(next(delays, 0.0))
            return create(*values)

        monkeypatch.setattr(store._client, "create_run", slow)
        run, new = store.obtain("pipeline.key", "k", now(), "run", {})
        store.settle()
    assert new and [run.info.run_id] == [left.info.run_id for left in runs(server.uri, "slow")]


def test_a_server_that_dies_midway_gets_the_rest_later(
    root: Path, server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The last test with this server: it stays dead."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    search(root, wait=True)  # everything over HTTP once: runs, params, metrics, artifacts
    [run] = runs(server.uri, pipeline_stage="search")
    assert run.data.metrics == {NAMES[0]: 0.5, NAMES[1]: 0.25, NAMES[2]: 2.0, "val/auc": 0.7123456789012345}
    assert list((server.folder / "served").rglob(f"{run.info.run_id}/**/allocation.json"))
    published = PUBLISHED.replace("search", "retrain")
    with Tracker(root, "retrain", "k2", CONFIGURATION, publish=published, wait=True) as tracker:
        retrain = tracker.run(seed=0)
        retrain.metrics(0, {"loss": 1.0})
        eventually(server.uri, "RUNNING", pipeline_stage="retrain")
        server.kill()
        for step in range(5):  # step 0 for the second time: dropped
            retrain.metrics(step, {"loss": 0.5})
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert journals(root) == ["retrain-k2.jsonl"]
    database = f"sqlite:///{server.folder / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    for _ in range(2):
        synchronise(root, CONFIGURATION, [published])
        [retrained] = runs(database, pipeline_stage="retrain")
        assert history(database, retrained, "loss") == [(0, 1.0), (1, 0.5), (2, 0.5), (3, 0.5), (4, 0.5)]
        assert retrained.info.status == "FINISHED"
        assert len(runs(database)) == 3
