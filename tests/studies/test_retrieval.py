"""Cells and tables of studies on retrieval: references, groups of targets, impaired serving, and wrong edges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipeline.data.encoded import Encoded
from pipeline.data.interactions import HISTORY
from pipeline.data.schema import PADDING, UNKNOWN
from pipeline.metrics.difference import decoded, encoded, sketch
from pipeline.studies import retrieval, retrieved
from pipeline.studies.frames import Frames
from pipeline.studies.grid import Study
from pipeline.studies.sections import conclusion
from tests.interactions import changed as experiment_of
from tests.interactions import retriever, write_interactions
from tests.studies.small import QUIET, written
from tests.studies.small import run_cell as run_one

pytestmark = QUIET
GRID: dict[str, Any] = {
    "quick": {"dataset": ["graph"], "model": ["lightgcn", "gtn", "references"], "seeds": [0, 1]},
    "every": {"arms": ["full"], "params": {"method": {"name": "full"}}},
    "model": {
        "lightgcn": {"params": {"backbone": {"name": "lightgcn", "options": {"layers": 2}}}},
        "gtn": {"params": {"backbone": {"name": "gtn", "options": {"threshold": 0.1}}}},
        "references": {"arms": ["references"]},
    },
}


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A benchmark of two blocks of users who keep to the items of their block."""
    folder, rng = tmp_path_factory.mktemp("benchmark"), np.random.default_rng(0)
    lists: dict[str, list[str]] = {"train": [], "test": []}
    for user in range(80):
        own = 2 * rng.permutation(30)[:16] + user % 2
        lists["train"].append(" ".join(map(str, [user, *own[:12]])))
        lists["test"].append(" ".join(map(str, [user, *own[12:]])))
    for name, lines in lists.items():
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def study(tmp_path: Path, benchmark: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A study of that benchmark with wrong edges; the data set says how it is encoded."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    folder = written(tmp_path, GRID, "graph")
    training = {"epochs": 6, "batch_size": 500, "lr": 0.05}
    params = {
        "dataset": {"name": "interactions", "path": str(benchmark), "options": {"added": 0.2}},
        "encode": {"split": {"by": "given", "train": 0.85, "arch": 0.05, "val": 0.1, "test": 0.0}},
        "task": {"name": "retrieval", "options": {"in_batch": False, "negatives": 100}},
        "search": training,
        "retrain": training,
    }
    (folder.parent / "datasets.yaml").write_text(yaml.safe_dump({"quick": {"graph": {"params": params}}}))
    return Study("graph", "quick", folder)


def test_cells_rank_groups_find_wrong_edges_and_stand_beside_references(study: Study) -> None:
    results = {model: run_one(study, dataset="graph", model=model) for model in study.grid["model"]}
    for model in ("lightgcn", "gtn"):
        (row, _) = results[model]["rows"]
        assert row["groups"]["all"]["recall_20"] == pytest.approx(row["metrics"]["recall_20"])
        assert decoded(row["groups"]["all"]["sketch"]) == pytest.approx(decoded(row["sketch"]))
        assert row["groups"]["new"]["users"] == 80 and "impaired" not in row
        assert row["edges"]["cosine"] > 0.65  # at most about 0.75, because half of the wrong edges are within a block
    assert set(results["gtn"]["rows"][0]["edges"]) == {"residual", "cosine", "dual"}
    assert set(results["gtn"]["rows"][0]["watched"]) == {"clipped", "largest_dual"}
    rows = results["references"]["rows"]
    assert {row["arm"] for row in rows} == {"popularity", "item_knn", "ease", "gf_cf"}
    assert len(rows) == 8 and {row["seed"] for row in rows} == {0, 1}
    popular = next(row for row in rows if row["arm"] == "popularity")
    knn = next(row for row in rows if row["arm"] == "item_knn")
    assert popular["metrics"]["recall_20"] < knn["metrics"]["recall_20"] and popular["bytes"] is None
    made = retrieval.tables(study, Frames.of(study, list(results.values())), list(results.values()))
    assert [table.title for table in made] == ["On test, graph", "Finding wrong edges", "Inside the models"]
    names = [line[0] for line in made[0].rows]
    assert set(names) == {"lightgcn", "gtn", "popularity", "item_knn", "ease", "gf_cf"}
    figures = [float(line[1].split()[0]) for line in made[0].rows]
    assert figures == sorted(figures, reverse=True) and names[-1] == "popularity"


def test_the_data_of_a_cell_are_encoded_as_its_data_set_says(study: Study) -> None:
    cell = study.cell({"dataset": "graph", "model": "gtn"})
    assert cell.params.encode.split.by == "given"
    for place in ("params", "search"):
        for name in ("encode", "dataset"):
            wrong = {**GRID, "model": {**GRID["model"], "gtn": {place: {name: {"seed": 1}}}}}
            with pytest.raises(ValueError, match=f"model: gtn: must not change {name}, because all cells"):
                of_definition(study, wrong).cells()
    wrong = {**GRID, "model": {**GRID["model"], "references": {"arms": ["references", "full"]}}}
    with pytest.raises(ValueError, match="the arm references stands alone"):
        of_definition(study, wrong).cells()


def of_definition(study: Study, given: Mapping[str, Any]) -> Study:
    """The study with another definition, on the same data sets."""
    kept = (study.folder.parent / "datasets.yaml").read_text()
    folder = written(study.folder.parents[1], given, study.name)
    (folder.parent / "datasets.yaml").write_text(kept)
    return Study(study.name, "quick", folder)


# --- impaired serving


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Encoded:
    return Encoded.load(write_interactions(tmp_path_factory.mktemp("shop") / "encoded", history=3))


def test_later_events_are_removed_and_earlier_ones_move_up(shop: Encoded) -> None:
    assert shop.interactions is not None
    columns = shop.interactions.columns
    row = np.zeros((1, columns.number), np.int32)
    row[0, HISTORY:] = [7, 8, 9, 1, 2, 1, 4, 3, 2]  # items, types, ages
    changed = retrieved._without(row, columns, np.array([[True, False, False]]))
    assert changed[0, HISTORY:].tolist() == [8, 9, PADDING, 2, 1, PADDING, 3, 2, PADDING]
    nothing = retrieved._without(row, columns, np.array([[True]]))
    assert (nothing[0, HISTORY:] == PADDING).all() and (row[0, HISTORY:] > 0).all()


def test_a_model_is_tested_with_less_than_it_was_trained_on(shop: Encoded) -> None:
    experiment = experiment_of(shop.folder, "two_tower", {"ids": "none", "dropout": 0.0})
    model = retriever(shop, "two_tower", ids="none").float()
    test, whole = shop.split("test"), model.ids_of_item.clone()
    found = retrieved.impaired(experiment, model, test)
    assert set(found) == {"no history", "without title", "without price"}  # this log states no unit of time
    assert (model.ids_of_item == whole).all()
    rows = np.concatenate(test.ids)
    rows[:, HISTORY:] = PADDING

    bare = replace(test, ids=(rows,), labels=(test.all_labels(),))
    task = experiment.task
    assert found["no history"] == task.measure(task.predict(model, bare), bare)["recall_20"]
    model.ids_of_item = whole.clone()
    own = model.kept.of_role("item")
    model.ids_of_item[:, own.slots_of(["price"])] = UNKNOWN
    assert found["without price"] == task.measure(task.predict(model, test), test)["recall_20"]


# --- tables


def reference_row(value: float, seed: int, groups: Mapping[str, float], arm: str, rng: Any) -> dict[str, Any]:
    influence = rng.normal(scale=0.2, size=400)
    of = {
        name: {"recall_20": one, "ndcg_20": one, "targets": 9, "users": 400, "sketch": encoded(sketch(influence))}
        for name, one in {"all": value, **groups}.items()
    }
    return {
        **{"seed": seed, "arm": arm, "budget": None, "dims": {}, "metrics": {"recall_20": value, "ndcg_20": value}},
        **{"validation": value, "bytes": None, "of_full": None, "model_bytes": None, "table_params": None},
        **{"training_bytes": None, "epochs": 0, "seconds": 1.0, "search_seconds": None, "setting": 0, "run": "r"},
        **{"rows": 400, "sketch": encoded(sketch(influence)), "groups": of},
    }


def test_a_claim_on_a_group_is_tested_against_the_reference_that_is_best_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = written(tmp_path, GRID, "graph")
    lines = ["source,claim,method,against,group", "ours,cold items,lightgcn,references,cold", ",none,mf,lightgcn,"]
    (folder / "claims.csv").write_text("\n".join(lines) + "\n")
    rng = np.random.default_rng(0)
    cold = {"lightgcn": 0.9, "popularity": 0.0, "last_bought": 0.3}
    rows = {
        name: [reference_row(0.5, seed, {"cold": value}, name, rng) for seed in range(3)]
        for name, value in cold.items()
    }
    base = {"metrics": {"recall_20": "Recall@20", "ndcg_20": "NDCG@20"}, "objective": "recall_20", "searches": []}
    base |= {"key": "k", "commit": "c", "tried": [], "fields": []}
    results = [
        {**base, "keys": {"dataset": "graph", "model": "lightgcn"}, "rows": rows["lightgcn"]},
        {
            **base,
            "keys": {"dataset": "graph", "model": "references"},
            "rows": rows["popularity"] + rows["last_bought"],
        },
    ]
    study = Study("graph", "quick", folder)
    made = retrieval.tables(study, Frames.of(study, results), results)
    (claims,) = [table for table in made if table.title.startswith("Claims")]
    (line,) = claims.rows  # nothing is known of mf
    said = dict(zip(claims.head, line, strict=True))
    assert said["tested"] == "lightgcn > last_bought" and said["it"] == "0.9000" and said["the other"] == "0.3000"
    assert conclusion(made) == ["Claims, graph: supported: lightgcn > last_bought (cold)."]
    assert said["difference"].startswith("+0.6000 (") and said["verdict"] == "supported"
