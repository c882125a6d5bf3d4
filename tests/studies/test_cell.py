"""One cell of a study, from its data to its result: what is searched, trained, tried and tested, and how often."""

import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipeline.data.encoded import Encoded
from pipeline.studies import cell
from pipeline.studies.grid import Study
from pipeline.studies.results import Results
from stages import study as stage
from tests.studies.small import QUIET, SMALL, changed, figures, one_method, repository, run_cell

pytestmark = QUIET


def result(study: Study, name: str = "tiny-fm-autodim") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((study.folder / f"artifacts/cells/quick/{name}.json").read_text())
    return found


def test_a_cell_searches_and_trains_every_arm_for_every_seed(done: Study) -> None:
    found = result(done)
    assert [(row["seed"], row["arm"]) for row in found["rows"]] == [
        (seed, arm) for seed in (0, 1) for arm in ("searched", "uniform", "random")
    ]
    assert [search["seed"] for search in found["searches"]] == [0, 1] and found["tried"] == []
    for row in found["rows"]:
        search = found["searches"][row["seed"]]
        assert 0 < row["metrics"]["auc"] < 1 and set(row["dims"]) == set(found["fields"])
        if row["arm"] == "searched":
            assert row["bytes"] == search["bytes"] and row["dims"] == search["dims"]
        if row["arm"] == "random":
            assert row["bytes"] == pytest.approx(search["bytes"], rel=0.021)
        if row["arm"] == "uniform":
            assert len(set(row["dims"].values())) == 1
    assert (found["objective"], found["keys"]) == ("auc", {"dataset": "tiny", "backbone": "fm", "method": "autodim"})
    assert not list((repository(done) / ".pipeline/studies/overall").iterdir())  # no work is left to continue


def test_an_interrupted_cell_continues_where_it_was(
    done: Study,
    tiny: Study,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.INFO, "pipeline.studies")
    trained: list[str] = []
    train, find = cell.train, cell.find

    def interrupted(experiment: Any, allocation: Any, seed: int, *rest: Any, **options: Any) -> Any:
        if len(trained) == 4:
            trained.append("interrupted")
            raise KeyboardInterrupt
        trained.append(options["title"])
        return train(experiment, allocation, seed, *rest, **options)

    searched: list[int] = []
    monkeypatch.setattr(cell, "train", interrupted)
    monkeypatch.setattr(cell, "find", lambda one, *rest: searched.append(one.params.search.seed) or find(one, *rest))
    with pytest.raises(KeyboardInterrupt):
        run_cell(tiny)
    assert not Results(tiny).own(tiny.cells()[0]).exists()
    again = run_cell(tiny)
    models = [f"seed-{seed}/{arm}" for seed in (0, 1) for arm in ("searched", "uniform", "random")]
    assert [name for name in trained if name != "interrupted"] == [f"tiny-fm-autodim, {name}" for name in models]
    assert trained.count("interrupted") == 1 and searched == [0, 1]  # every model and every search once
    assert figures(again) == figures(result(done))
    said = [record.getMessage() for record in caplog.records if record.name == "pipeline.studies"]
    for line, name, row in zip(said, models, again["rows"], strict=True):
        told = f"tiny-fm-autodim: {name}: AUC {row['metrics']['auc']:.4f}, {row['bytes']:,} bytes, "
        assert re.fullmatch(re.escape(told) + r"\d+ s", line)
    assert re.search(r"(?m)^cell: tiny-fm-autodim: 2 searches, 6 models, \d+ s$", capsys.readouterr().out)


def test_the_setting_that_is_best_on_val_is_kept_for_each_budget(tiny: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first does harm. Settings that differ in the retraining alone share their search."""
    events: list[str] = []
    train, find, split = cell.train, cell.find, Encoded.split

    def trained(experiment: Any, allocation: Any, seed: int, *rest: Any, **options: Any) -> Any:
        events.append("tried" if seed == cell.TUNING_SEED else "trained")
        return train(experiment, allocation, seed, *rest, **options)

    def found(experiment: Any, *rest: Any) -> Any:
        events.append(f"searched with {experiment.params.search.lr} and seed {experiment.params.search.seed}")
        return find(experiment, *rest)

    def opened(data: Encoded, *parts: Any) -> Any:
        events.extend("tested" for part in parts if part == "test")
        return split(data, *parts)

    for place, name, watched in ((cell, "train", trained), (cell, "find", found), (Encoded, "split", opened)):
        monkeypatch.setattr(place, name, watched)
    lr = tiny.cells()[0].params.search.lr
    tuning: list[dict[str, Any]] = [{"retrain": {"lr": rate, "epochs": 3}} for rate in (0.05, 0.0, 0.0)]
    tuning.append({"retrain": {"lr": 0.0, "epochs": 1}, "search": {"lr": 2 * lr}})
    entry = {"arms": ["searched"], "budgets": [0.5, 0.3], "tuned": True, "tuning": tuning}
    made = run_cell(changed(tiny, one_method("autodim", {"seeds": [0, 1]}, **entry)))
    assert [(t["setting"], t["budget"]) for t in made["tried"]] == [(s, b) for s in range(4) for b in (0.5, 0.3)]
    for budget in (0.5, 0.3):
        objectives = [trial["objective"] for trial in made["tried"] if trial["budget"] == budget]
        kept = {row["setting"] for row in made["rows"] if row["budget"] == budget}
        assert kept == {int(np.argmax(objectives))} == {1} and objectives[1] == objectives[2]
    assert all(row["bytes"] <= row["budget"] * row["bytes"] / row["of_full"] for row in made["rows"])
    tuned = events[: max(place for place, event in enumerate(events) if event == "tried") + 1]
    assert tuned.count("tried") == 8 and "tested" not in tuned
    searches = [event for event in tuned if event.startswith("searched")]
    assert searches == [f"searched with {rate} and seed {cell.TUNING_SEED}" for rate in (lr, 2 * lr)]
    rest = events[len(tuned) :]
    assert rest.count("tested") == rest.count("trained") == len({row["built"] for row in made["rows"]})


def test_a_setting_that_cannot_keep_a_budget_is_not_tried_under_it(tiny: Study) -> None:
    """Lifted to D, even dimension 1 is larger than the tables alone."""
    lifted = {"method": {"options": {"uniform": {"lift": True}}}}
    entry: dict[str, Any] = {"params": {"method": {"name": "uniform"}}, "arms": ["searched"], "tuned": True}
    entry |= {"budgets": [0.5, 0.128], "tuning": [lifted, {}]}
    found = run_cell(changed(tiny, one_method("uniform", **entry)))
    tried = {(trial["setting"], trial["budget"]): trial for trial in found["tried"]}
    assert len(tried) == 4
    assert tried[0, 0.128]["objective"] is None and "no dimension" in tried[0, 0.128]["problem"]
    assert all(trial["objective"] > 0 for place, trial in tried.items() if place != (0, 0.128))
    assert {row["setting"] for row in found["rows"] if row["budget"] == 0.128} == {1}
    entry |= {"budgets": [0.001]}
    told = r"no setting of tiny-fm-uniform keeps the budget 0\.001: uniform: no dimension"
    with pytest.raises(ValueError, match=told):
        run_cell(changed(tiny, one_method("uniform", **entry)))


def test_one_search_serves_many_budgets(tiny: Study) -> None:
    entry = {"arms": ["searched", "full"], "budgets": [0.3, 0.5, 1.0, 1.0]}
    found = run_cell(changed(tiny, one_method("autodim", **entry)))
    assert len(found["searches"]) == 1
    sizes = {row["budget"]: row["of_full"] for row in found["rows"] if row["arm"] == "searched"}
    assert all(size <= budget for budget, size in sizes.items()) and list(sizes) == [0.3, 0.5, 1.0]
    assert [row["arm"] for row in found["rows"]].count("full") == 1


def test_a_field_alone_keeps_its_dimension_and_the_others_have_none(tiny: Study) -> None:
    found = run_cell(changed(tiny, one_method("full", arms=["alone"], field="item")))
    [row] = found["rows"]
    assert row["dims"] == {field: 8 if field == "item" else 0 for field in found["fields"]} and not found["searches"]
    with pytest.raises(ValueError, match=r"no field \['itme'\] in the schema"):
        run_cell(changed(tiny, one_method("full", arms=["alone"], field="itme")))


def test_a_cell_that_has_a_result_is_not_run_again_unless_something_changes(
    done: Study, tiny: Study, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a fresh clone, which has what a report kept, and neither artifacts nor DVC's cache."""
    found, kept = result(done), Results(tiny).kept(tiny.cells()[0])
    kept.parent.mkdir(parents=True)
    shutil.copy(done.folder / "artifacts/cells/quick/tiny-fm-autodim.json", kept)
    with monkeypatch.context() as patch:
        patch.setattr(stage, "run_cell", lambda *given: pytest.fail("the cell was run"))
        assert run_cell(tiny) == found
    told = f"cell: tiny-fm-autodim: the result is here already, from commit {found['commit']}\n"
    assert told in capsys.readouterr().out
    other = {**SMALL, "quick": {**SMALL["quick"], "seeds": [0]}, "every": {"params": {"retrain": {"lr": 0.02}}}}
    again = run_cell(changed(tiny, other))
    assert again["key"] != found["key"] and figures(again) != figures(found)[:3]


def test_a_cell_without_its_data_says_how_to_make_them(tiny: Study) -> None:
    shutil.rmtree("artifacts/data")
    with pytest.raises(ValueError, match=r"^cell tiny-fm-full: its data are missing; `make study` writes them$"):
        stage.cell(tiny, {"dataset": "tiny", "backbone": "fm", "method": "full"})
    assert not Path("artifacts/cells").exists()


def test_a_budget_that_is_too_small_is_left_out_with_its_reason(tiny: Study) -> None:
    entry: dict[str, Any] = {"params": {"method": {"name": "uniform"}}, "arms": ["searched"], "budgets": [0.5, 0.001]}
    found = run_cell(changed(tiny, one_method("uniform", **entry)))
    assert {row["budget"] for row in found["rows"]} == {0.5}
    assert list(found["impossible"]) == ["0.001"] and "raise the budget" in found["impossible"]["0.001"]
    with pytest.raises(ValueError, match="tiny-fm-uniform keeps none of its budgets: uniform: no dimension"):
        run_cell(changed(tiny, one_method("uniform", **entry | {"budgets": [0.001]})))


def test_a_cell_of_interactions_has_the_fields_that_its_backbone_uses(tiny: Study, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [f"{user},{item},{user % 3}" for user in range(60) for item in rng.permutation(40)[:15]]
    (tmp_path / "shop.csv").write_text("\n".join(["who,what,country", *rows]) + "\n")
    study = changed(
        tiny,
        {**SMALL, "backbone": {"graph": {"params": {"backbone": {"name": "lightgcn", "options": {}}}}}}
        | {"quick": {"dataset": ["tiny"], "backbone": ["graph"], "method": ["autodim"], "seeds": [0]}},
    )
    columns = {"interactions": {"user": "who", "item": "what", "users": ["country"]}, "categorical": ["country"]}
    params = {
        "dataset": {"name": "table", "path": str(tmp_path / "shop.csv"), "options": columns},
        "task": {"name": "retrieval", "options": {}},
        "search": {"epochs": 1, "batch_size": 100},
        "retrain": {"epochs": 1, "batch_size": 100},
    }
    text = yaml.safe_dump({"quick": {"tiny": {"params": params}}})
    (study.folder.parent / "datasets.yaml").write_text(text)
    study = Study(study.name, "quick", study.folder)
    shutil.rmtree(study.folder / "artifacts/data")
    found = run_cell(study)
    assert found["fields"] == ["who", "what"] and found["objective"] == "recall_20"
    assert [row["arm"] for row in found["rows"]] == ["searched", "uniform", "random"]
    assert all(set(row["dims"]) == {"who", "what"} for row in found["rows"])
