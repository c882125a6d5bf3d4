"""What the store holds after journals have arrived."""

import json
import math
import shutil
import time
from pathlib import Path

import pytest

from pipeline.tracking import replay, tracker
from pipeline.tracking.identity import configuration_key
from pipeline.tracking.place import TAG_CHARACTERS
from pipeline.tracking.sync import synchronise
from pipeline.tracking.tracker import Tracker, shortened
from tests.tracking.stores import CONFIGURATION, NAMES, PUBLISHED, artifacts, history, journals, parents, runs, search


def test_a_run_holds_what_the_stage_recorded(journal_only: Path) -> None:
    root = journal_only
    search(root)
    assert journals(root) == ["search-k1.files", "search-k1.jsonl"]
    Path("allocation.json").unlink()  # the journal has its own copy
    synchronise(root)
    assert journals(root) == []
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
    assert Path(PUBLISHED).is_file()


def test_running_again_adds_no_run_and_no_point(journal_only: Path) -> None:
    root = journal_only
    search(root)
    search(root)  # in the same journal
    synchronise(root)
    search(root)  # in a new one
    synchronise(root)
    assert len(runs(root)) == 2
    [run] = runs(root, pipeline_stage="search")
    assert history(root, run, NAMES[0]) == [(0, 0.5), (1, 0.5), (2, 0.5)]
    assert run.info.status == "FINISHED"


def test_two_stages_of_one_configuration_share_a_parent_and_seeds_have_runs_of_their_own(journal_only: Path) -> None:
    root, began = journal_only, time.time() - 60
    search(root)
    with Tracker(root, "retrain", "k2", CONFIGURATION) as tracker:
        for name in ("searched/seed-0", "searched/seed-1"):
            run = tracker.run(name, params={"seed": name[-1]}, started=began)
            run.metrics(0, {"loss": 0.5})
            run.end()
    synchronise(root)
    [parent] = parents(root)
    retrained = runs(root, pipeline_stage="retrain")
    assert {run.info.run_name for run in retrained} == {"retrain/searched/seed-0", "retrain/searched/seed-1"}
    assert {run.data.tags["mlflow.parentRunId"] for run in retrained} == {parent.info.run_id}
    assert {run.info.start_time for run in retrained} == {int(began * 1000)}


def test_a_changed_configuration_links_a_cached_stage_and_does_not_repeat_it(journal_only: Path) -> None:
    root = journal_only
    search(root)
    synchronise(root)
    [run] = runs(root, pipeline_stage="search")
    changed = {**CONFIGURATION, "retrain": {"epochs": 3}}
    [line] = synchronise(root, changed, [PUBLISHED])
    assert "belongs to another configuration" in line
    assert [cached.info.run_id for cached in runs(root, pipeline_stage="search")] == [run.info.run_id]
    [parent] = runs(root, pipeline_configuration=configuration_key(changed))
    assert parent.data.tags["pipeline.cached.search"] == run.info.run_id
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics == {"auc": 0.7}
    search(root, "k3", changed)  # its own now
    synchronise(root)
    [parent] = runs(root, pipeline_configuration=configuration_key(changed))
    assert "pipeline.cached.search" not in parent.data.tags


def test_synchronising_fills_another_store_and_a_second_time_changes_nothing(
    journal_only: Path, migrated: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    root = journal_only
    search(root)
    synchronise(root)
    [run] = runs(root, pipeline_stage="search")
    shutil.copy(migrated, root / "new.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///new.db")
    capfd.readouterr()
    for answer in ("uploaded, 10 points", "was complete"):
        [line] = synchronise(root, CONFIGURATION, [PUBLISHED])
        assert answer in line
        assert capfd.readouterr() == ("", "")
        [again] = runs(f"sqlite:///{root}/new.db", pipeline_stage="search")
        assert again.data.params == run.data.params
        assert again.data.metrics == run.data.metrics
        assert again.info.start_time == run.info.start_time
        assert history(f"sqlite:///{root}/new.db", again, NAMES[2]) == [(0, 0.0), (1, 1.0), (2, 2.0)]
        assert artifacts(root, again) == ["decided/allocation.json"]


def test_an_artifact_that_has_changed_since_is_not_uploaded_but_named(journal_only: Path) -> None:
    root = journal_only
    search(root)
    shutil.rmtree(root / ".pipeline")
    Path("allocation.json").write_text("another")
    lines = synchronise(root, CONFIGURATION, [PUBLISHED])
    assert any("artifact allocation.json of run seed-0 is missing or has changed" in line for line in lines)
    [run] = runs(root, pipeline_stage="search")
    assert artifacts(root, run) == []


def test_a_file_that_moves_on_is_found_again_where_it_went(journal_only: Path) -> None:
    root = journal_only
    Path("draft").mkdir()
    Path("draft/allocation.json").write_text("decided")
    with Tracker(root, "retrain", "k1", CONFIGURATION, publish=PUBLISHED) as tracker:
        tracker.run().artifact("draft/allocation.json", output="models/allocation.json")
    Path("draft").rename("models")
    shutil.rmtree(root / ".pipeline")
    synchronise(root, CONFIGURATION, [PUBLISHED])
    [run] = runs(root, pipeline_stage="retrain")
    assert artifacts(root, run) == ["allocation.json"]


def test_configurations_with_one_title_have_names_that_differ(journal_only: Path) -> None:
    root = journal_only
    for lr in 0.1, 0.2:
        search(root, f"k{lr}", {"lr": lr}, title="bob's.csv, autodim, fm")
        synchronise(root)
    search(root, "k0.1", {"lr": 0.1}, title="bob's.csv, autodim, fm")  # it keeps its name
    synchronise(root)
    names = {run.data.params["lr"]: run.info.run_name for run in parents(root)}
    longer = f"bob's.csv, autodim, fm, {configuration_key({'lr': 0.2})[:8]}"
    assert names == {"0.1": "bob's.csv, autodim, fm", "0.2": longer}


def test_a_file_is_attached_to_the_runs_of_an_earlier_stage_of_the_same_configuration(journal_only: Path) -> None:
    root, other = journal_only, {"dim": 4}
    search(root)
    search(root, "k2", other)
    Path("picture.png").write_bytes(b"lines")
    with Tracker(root, "evaluate", "k3", CONFIGURATION) as tracker:
        tracker.attach("search", "picture.png")
    synchronise(root)
    [run], [untouched] = (
        runs(root, pipeline_key=f"search/seed-0:{key}", pipeline_stage="search") for key in ("k1", "k2")
    )
    assert artifacts(root, run) == ["decided/allocation.json", "picture.png"]
    assert artifacts(root, untouched) == ["decided/allocation.json"]


def test_a_run_says_where_its_model_is_and_holds_its_small_files(
    journal_only: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = journal_only
    monkeypatch.setattr(tracker, "MODEL_FILE_BYTES", 10)
    Path("draft").mkdir()
    Path("draft/allocation.json").write_text("{}")
    Path("draft/weights").write_bytes(bytes(11))
    with Tracker(root, "retrain", "k1", CONFIGURATION) as stage:
        stage.run(seed=0).model("draft", Path("models/seed-0"))
    synchronise(root)
    [run] = runs(root, pipeline_stage="retrain")
    assert run.data.tags["model"] == "models/seed-0"
    assert artifacts(root, run) == ["model/allocation.json"]


def test_a_parent_is_described_by_as_much_of_the_report_as_fits(journal_only: Path) -> None:
    blocks = ["**Deploy `full`.**", "![curve](figures/curve.png)", "| a |\n| --- |\n" + "| 1 |\n" * 2000, "- last"]
    with Tracker(journal_only, "evaluate", "k1", CONFIGURATION) as stage:
        stage.parent(description="\n\n".join(blocks) + "\n")
    synchronise(journal_only)
    [parent] = parents(journal_only)
    described = parent.data.tags["mlflow.note.content"]
    assert described == "**Deploy `full`.**\n\nThe whole report is among the artifacts."
    assert shortened("a\n\n![b](c)\n\nd\n") == "a\n\nd"
    exact = "x" * TAG_CHARACTERS
    assert shortened(exact) == exact


def test_runs_and_their_parent_name_the_dataset_once(journal_only: Path) -> None:
    root = journal_only
    dataset = {"name": "planted", "digest": "a" * 36, "source": "data"}
    for stage in ("search", "retrain", "search"):
        with Tracker(root, stage, "k1", CONFIGURATION, dataset=dataset) as tracker:
            tracker.run(seed=0)
        synchronise(root)
    tracked = runs(root)
    assert len(tracked) == 3
    for run in tracked:
        [known] = run.inputs.dataset_inputs
        assert (known.dataset.name, known.dataset.digest) == ("planted", "a" * 36)
        assert json.loads(known.dataset.source) == {"uri": "data"}


@pytest.mark.parametrize(("error", "status"), [(ValueError("bad"), "FAILED"), (SystemExit(143), "KILLED")])
def test_a_run_ends_as_its_block_does(journal_only: Path, error: BaseException, status: str) -> None:
    root = journal_only
    with pytest.raises(type(error)), Tracker(root, "search", "k1", CONFIGURATION, publish=PUBLISHED) as tracker:
        tracker.run(seed=0)
        raise error
    for _ in range(2):
        synchronise(root)
        assert [run.info.status for run in runs(root)] == [status] * 2
        assert journals(root) == ["search-k1.jsonl"]  # the stage will continue it
    [run] = runs(root, pipeline_stage="search")
    assert run.data.tags["pipeline.error"] == f"{type(error).__name__}: {error}"
    assert not Path(PUBLISHED).exists()


def test_a_parent_ends_as_the_stage_that_ended_last(journal_only: Path) -> None:
    root = journal_only
    search(root)
    with pytest.raises(SystemExit), Tracker(root, "retrain", "k2", CONFIGURATION) as tracker:
        tracker.run()
        raise SystemExit(143)
    synchronise(root)
    assert [parent.info.status for parent in parents(root)] == ["KILLED"]
    for complete, status in ((False, "KILLED"), (True, "FINISHED")):
        synchronise(root, CONFIGURATION, [PUBLISHED], complete=complete)
        assert [parent.info.status for parent in parents(root)] == [status]


def test_infinity_becomes_a_tag_and_nan_stays(journal_only: Path) -> None:
    root = journal_only
    with Tracker(root, "search", "k1", CONFIGURATION) as tracker:
        run = tracker.run()
        run.metrics(0, ("a", "b"), (math.inf, math.nan))
        run.metrics(1, {"c": -math.inf, "d": math.nan})
        tracker.parent({"ratio": math.inf})
    synchronise(root)
    [run] = runs(root, pipeline_stage="search")
    assert run.data.metrics.keys() == {"b", "d"}
    assert all(map(math.isnan, run.data.metrics.values()))
    assert run.data.tags["nonfinite.a"] == "inf at step 0"
    assert run.data.tags["nonfinite.c"] == "-inf at step 1"
    assert parents(root)[0].data.tags["nonfinite.ratio"] == "inf"


def test_names_and_values_that_mlflow_refuses_are_made_fit(journal_only: Path) -> None:
    root = journal_only
    long = "x" * 7000
    awkward = ("arch/hour=0|1", "arch/hour=0[1", "../up", "a//b", "n" * 300, "größe")
    with Tracker(root, "search", "k1", {"note": long, "list": [1, None]}) as tracker:
        run = tracker.run(params={"feature, odd": long})
        run.metrics(0, awkward, range(6))
        run.tag("odd=tag", "t" * 9000)
    synchronise(root)
    [run] = runs(root, pipeline_stage="search")
    assert sorted(run.data.metrics.values()) == [0, 1, 2, 3, 4, 5]
    assert run.data.metrics["größe"] == 5
    [(key, value)] = run.data.params.items()
    assert key.startswith("feature_ odd-")
    assert len(value) == 6000 and "sha256:" in value


def test_long_series_thin_out_but_keep_their_end(journal_only: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = journal_only
    monkeypatch.setattr(replay, "EVERY_STEP", 10)
    with Tracker(root, "search", "k1", CONFIGURATION) as tracker:
        run = tracker.run()
        for step in range(44):
            run.metrics(step, ("loss",), (float(step),))
    synchronise(root)
    [run] = runs(root, pipeline_stage="search")
    steps = [*range(10), 10, 12, 14, 16, 18, 20, 24, 28, 32, 36, 40, 43]
    assert history(root, run, "loss") == [(step, float(step)) for step in steps]


def test_wrong_use_is_refused(journal_only: Path) -> None:
    root = journal_only
    with pytest.raises(ValueError, match=r"may hold letters, .* got 'a/b'"):
        Tracker(root, "search", "a/b", CONFIGURATION)
    with Tracker(root, "search", "k1", CONFIGURATION) as tracker:
        run = tracker.run(seed=0)
        with pytest.raises(ValueError, match="must be new"):
            tracker.run(seed=0)
        with pytest.raises(ValueError, match="got 2 names and 1 values"):
            run.metrics(0, ("a", "b"), (1.0,))
        with pytest.raises(FileNotFoundError):
            run.artifact("nowhere.json")
        run.end()
        with pytest.raises(ValueError, match="has ended"):
            run.metrics(0, {"a": 1.0})
    with pytest.raises(ValueError, match="configuration"):
        synchronise(root, None, [PUBLISHED])
    with pytest.raises(FileNotFoundError, match=r"no journal nowhere\.jsonl"):
        synchronise(root, CONFIGURATION, ["nowhere.jsonl"])
