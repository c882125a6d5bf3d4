"""Studies: what they consist of, one cell from its data to the table, interruption, and what the report says."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
import yaml
from scipy import stats

from pipeline.tracking import synchronise
from pipeline.workflow.plug import names
from stages import _cell, _model, _tables, study
from stages._study import ROOT, STUDIES, Study, merged
from tests.closure import closure

NAMES = sorted(path.parent.name for path in STUDIES.glob("*/params.yaml"))
ARMS = ("searched", "uniform")
MODULE = re.compile(r"^\.\./\.\./pipeline/(methods|backbones)/")


def test_all_eight_studies_are_there() -> None:
    assert NAMES == ["budget", "case", "components", "data", "overall", "schedule", "stability", "transfer"]


PROFILES = [(name, profile) for name in NAMES for profile in ("quick", "full")]
PROFILES += [("overall", "methods"), ("overall", "methods_1m")]


@pytest.mark.parametrize(("name", "profile"), PROFILES)
def test_every_cell_is_valid_and_they_are_few_enough_for_dvc(name: str, profile: str) -> None:
    found = Study(name, profile)
    cells = found.cells()
    assert 0 < len(cells) < 70 and len({cell.name for cell in cells}) == len(cells)
    for cell in cells:
        assert cell.runs > 0 and cell.params["dataset"]["name"] in cell.keys["dataset"]
        assert len(cell.tuning) == (3 if "methods" in profile else 0)  # the same for every method
        for setting in cell.settings():
            _model.method(setting.search)
    assert found.seeds


@pytest.mark.parametrize(("name", "profile"), PROFILES)
def test_dvc_is_told_of_all_that_a_cell_depends_on(name: str, profile: str) -> None:
    found = Study(name, profile)
    declared = set(found.stage("cell")["deps"])
    code = {f"../../{path}" for path in closure("stages/_cell.py") if "tracking" not in path}
    plugged = {path for path in declared if MODULE.match(path)}
    for kind in ("methods", "backbones"):
        for module in names(kind):
            code |= {f"../../{path}" for path in closure(f"pipeline/{kind}/{module}.py") if f"/{kind}/" not in path}
    data = f"artifacts/data/{profile}/${{item.dataset}}"
    assert declared == code | plugged | {data}
    for cell in found.cells():
        needed = {f"../../pipeline/backbones/{cell.params['backbone']['name']}.py"}
        needed |= {f"../../pipeline/methods/{cell.params['method']['name']}.py"}
        if cell.searches:
            needed |= {f"../../pipeline/backbones/{cell.search['backbone']['name']}.py"}
        needed |= {f"../../pipeline/methods/{arm}.py" for arm in cell.arms if arm in ("uniform", "random", "full")}
        needed |= {"../../pipeline/methods/full.py"} if "alone" in cell.arms else set()
        keys = {f"${{item.{key}}}": value for key, value in cell.keys.items()}
        assert needed <= {_filled(path, keys) for path in plugged}
    assert list(found.stage("cell")["matrix"]) == list(found.grid)  # so that both name a cell alike
    params = found.stage("cell")["params"]
    listed = {key for key in params if isinstance(key, str)}
    wanted = {f"{profile}.seeds"} | {f"{key}.${{item.{key}}}" for key in found.grid if key != "dataset"}
    wanted |= {"every"} if "every" in found.given else set()
    assert listed == wanted | ({f"{profile}.every"} if "every" in found.given[profile] else set())
    assert {"../datasets.yaml": [f"{profile}.${{item.dataset}}.params"]} in params


def _filled(path: str, keys: Mapping[str, str]) -> str:
    for reference, value in keys.items():
        path = path.replace(reference, value)
    return path


# --- one small study, in a folder of its own

SMALL = {
    "quick": {"dataset": ["tiny"], "backbone": ["fm"], "method": ["autodim", "full"], "seeds": [0, 1]},
    "backbone": {"fm": {"params": {"backbone": {"name": "fm"}}}},
    "method": {
        "autodim": {"arms": ["searched", "uniform", "random"]},
        "full": {"params": {"method": {"name": "full", "options": {}}}, "arms": ["full"]},
    },
}
TINY = {
    "dataset": {"name": "synthetic", "options": {"rows": 600}},
    "search": {"epochs": 1, "batch_size": 100},
    "retrain": {"epochs": 1, "batch_size": 100},
}


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.setenv("PIPELINE_TRACKING", "journal")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setattr(study, "ROOT", tmp_path)
    monkeypatch.setattr(study, "STUDIES", tmp_path / "studies")
    return made(tmp_path, SMALL)


def made(place: Path, given: Mapping[str, Any], name: str = "overall") -> Study:
    folder = place / "studies" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(dict(given), sort_keys=False))
    (folder.parent / "datasets.yaml").write_text(yaml.safe_dump({"quick": {"tiny": {"params": TINY}}}))
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"cell-quick": {"deps": []}}}))
    return Study(name, "quick", folder)


def ran(small: Study, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(small.folder)
    if not Path("artifacts/data").exists():
        study.data(small, "tiny")
    keys = {key: values[0] for key, values in small.grid.items()}
    study.cell(small, keys)
    found: dict[str, Any] = json.loads(Path(f"artifacts/cells/quick/{'-'.join(keys.values())}.json").read_text())
    return found


def figures(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if "seconds" not in key} for row in found["rows"]]


def test_a_cell_searches_and_trains_every_arm_for_every_seed(small: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    found = ran(small, monkeypatch)
    assert [(row["seed"], row["arm"]) for row in found["rows"]] == [
        (seed, arm) for seed in (0, 1) for arm in ("searched", "uniform", "random")
    ]
    for row in found["rows"]:
        chosen = found["searches"][row["seed"]]
        assert 0 < row["auc"] < 1 and set(row["dims"]) == set(found["fields"])
        if row["arm"] == "searched":
            assert row["bytes"] == chosen["bytes"] and row["dims"] == chosen["dims"]
        if row["arm"] == "random":
            assert row["bytes"] == pytest.approx(chosen["bytes"], rel=0.021)
        if row["arm"] == "uniform":
            assert len(set(row["dims"].values())) == 1
    assert not list((study.ROOT / ".pipeline/studies/overall").iterdir())  # nothing is left of its work


def test_a_cell_that_was_interrupted_goes_on_where_it_stood(
    small: Study, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = ran(small, monkeypatch)
    trained: list[str] = []
    real = _cell.retrain.prepare

    def counted(params: Any, schema: Any, allocation: Any, seed: int, *rest: Any) -> Any:
        if len(trained) == 4:
            trained.append("interrupted")
            raise KeyboardInterrupt
        trained.append(f"{allocation.method}-{seed}")
        return real(params, schema, allocation, seed, *rest)

    monkeypatch.setattr(_cell.retrain, "prepare", counted)
    with pytest.raises(KeyboardInterrupt):
        ran(small, monkeypatch)
    again = ran(small, monkeypatch)
    assert trained.count("interrupted") == 1 and len(trained) == 1 + 6  # every model once
    assert figures(again) == figures(whole)


def test_of_several_settings_the_best_on_val_is_kept_for_each_budget(
    tmp_path: Path, small: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Learning rates of which one learns nothing; ``test`` is opened for the seeds of the study alone."""
    opened: list[tuple[int, str]] = []
    real = _cell._tested
    monkeypatch.setattr(_cell, "_tested", lambda *given: opened.append((given[3], given[4])) or real(*given))
    entry: dict[str, Any] = {"arms": ["searched"], "budgets": [0.5, 0.3], "tuned": True}
    entry["tuning"] = [{"retrain": {"lr": lr}} for lr in (0.0, 0.02, 0.0)]
    found = ran(made(tmp_path, {**SMALL, "method": {"autodim": entry, "full": {}}}), monkeypatch)
    assert [(t["setting"], t["budget"]) for t in found["tried"]] == [(s, b) for s in (0, 1, 2) for b in (0.5, 0.3)]
    for budget in (0.5, 0.3):
        aucs = [t["val_auc"] for t in found["tried"] if t["budget"] == budget]
        kept = {row["setting"] for row in found["rows"] if row["budget"] == budget}
        assert kept == {int(np.argmax(aucs))} and aucs[0] == aucs[2]
    assert opened == [(seed, "searched") for seed in (0, 1) for _ in (0.5, 0.3)]
    assert all(row["bytes"] <= row["budget"] * row["bytes"] / row["of_full"] for row in found["rows"])


def test_a_setting_that_cannot_keep_a_budget_is_not_tried_under_it(
    tmp_path: Path, small: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lifted to D, even dimension 1 is larger than the tables alone."""
    lifted = {"method": {"options": {"uniform": {"lift": True}}}}
    entry: dict[str, Any] = {"params": {"method": {"name": "uniform"}}, "arms": ["searched"], "tuned": True}
    entry |= {"budgets": [0.5, 0.128], "tuning": [lifted, {}]}
    grid = {**SMALL["quick"], "method": ["uniform"]}
    one = made(tmp_path, {**SMALL, "quick": grid, "method": {"uniform": entry}})
    found = ran(one, monkeypatch)
    tried = {(trial["setting"], trial["budget"]): trial for trial in found["tried"]}
    assert len(tried) == 4
    assert tried[0, 0.128]["val_auc"] is None and "no dimension makes" in tried[0, 0.128]["problem"]
    assert all(trial["val_auc"] > 0 for place, trial in tried.items() if place != (0, 0.128))
    assert {row["setting"] for row in found["rows"] if row["budget"] == 0.128} == {1}
    study.report(one)
    assert "over the budget, " in Path("results/quick/table.md").read_text()
    entry |= {"budgets": [0.001]}
    with pytest.raises(ValueError, match=r"tiny-fm-uniform keeps the budget 0\.001: uniform: no dimension"):
        ran(made(tmp_path, {**SMALL, "quick": grid, "method": {"uniform": entry}}), monkeypatch)


def test_the_report_says_what_the_rows_say(small: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    found = ran(small, monkeypatch)
    with pytest.raises(ValueError, match="cells tiny-fm-full have no results yet"):
        study.report(small)
    study.cell(small, {"dataset": "tiny", "backbone": "fm", "method": "full"})
    study.report(small)
    folder = small.folder / "results/quick"
    assert sorted(path.name for path in folder.iterdir()) == [
        "cells",
        "minus_uniform.png",
        "minus_uniform.svg",
        "section.html",
        "table.csv",
        "table.md",
    ]
    rows = pd.read_csv(folder / "table.csv")
    assert len(rows) == 8 and rows["commit"].notna().all() and {"run", "mlflow_run"} <= set(rows)
    searched = [row["auc"] for row in found["rows"] if row["arm"] == "searched"]
    uniform = [row["auc"] for row in found["rows"] if row["arm"] == "uniform"]
    text = (folder / "table.md").read_text()
    assert f"| tiny | fm | autodim | searched | {_tables.spread(searched)} |" in text
    difference = (searched[0] - uniform[0] + searched[1] - uniform[1]) / 2
    assert f"| {difference:+.4f} (" in text
    study.html(small.folder / "page.html")
    page = (small.folder / "page.html").read_text()
    outside = re.findall(r"""(?:src|href)=["'](?!data:)[^"']*""", page)
    assert not outside and "prefers-color-scheme: dark" in page and "@media print" in page


def test_what_other_settings_have_left_is_no_result(
    small: Study, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran(small, monkeypatch)
    changed = made(small.folder.parents[1], {**SMALL, "every": {"params": {"retrain": {"lr": 0.02}}}})
    study.cell(changed, {"dataset": "tiny", "backbone": "fm", "method": "full"})
    study.report(changed, partial=True)
    text = (small.folder / "results/quick/table.md").read_text()
    assert "Not there yet: tiny-fm-autodim." in text
    assert "| full |" in text and "searched" not in text.split("On the")[1]


def test_a_cell_that_the_results_have_is_not_run_again_unless_something_has_changed(
    small: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a fresh clone, which has the committed results and neither artifacts nor DVC's cache."""
    found = ran(small, monkeypatch)
    study.report(small, partial=True)
    shutil.rmtree("artifacts")
    with monkeypatch.context() as patch:
        patch.setattr(_cell, "run", lambda *given: pytest.fail("the cell was run"))
        assert ran(small, patch) == found
        shutil.rmtree("artifacts")
        study.data(small, "tiny")
        study.report(small, partial=True)
        assert "| searched |" in Path("results/quick/table.md").read_text()
    changed = made(small.folder.parents[1], {**SMALL, "every": {"params": {"retrain": {"lr": 0.02}}}})
    assert figures(ran(changed, monkeypatch)) != figures(found)


def test_a_report_leaves_the_kept_cells_of_data_that_are_not_here(
    tmp_path: Path, small: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran(small, monkeypatch)
    study.report(small, partial=True)
    kept = {path.name: path.read_text() for path in Path("results/quick/cells").iterdir()}
    both = made(tmp_path, {**SMALL, "quick": {**SMALL["quick"], "dataset": ["tiny", "other"]}})
    (small.folder.parent / "datasets.yaml").write_text(
        yaml.safe_dump({"quick": {"tiny": {"params": TINY}, "other": {"params": TINY}}})
    )
    both = Study("overall", "quick", both.folder)
    shutil.rmtree("artifacts")
    study.data(both, "other")
    study.cell(both, {"dataset": "other", "backbone": "fm", "method": "full"})
    study.report(both, partial=True)
    assert {path.name: path.read_text() for path in Path("results/quick/cells").iterdir()}.items() > kept.items()
    text = Path("results/quick/table.md").read_text()
    assert "Kept, and not in the tables because their data are not here: tiny-fm-autodim." in text
    assert "Not there yet: tiny-fm-full, other-fm-autodim." in text


def test_options_do_not_outlive_the_name_they_belong_to() -> None:
    base = {"method": {"name": "autodim", "options": {"a": 1, "b": 2}}, "dim": 8}
    assert merged(base, {"method": {"options": {"a": 3}}})["method"] == {"name": "autodim", "options": {"a": 3, "b": 2}}
    other = merged(base, {"method": {"name": "full", "options": {"c": 1}}})
    assert other == {"method": {"name": "full", "options": {"c": 1}}, "dim": 8} and base["method"]["options"]["a"] == 1


def test_an_interrupted_study_starts_no_further_cell_and_ends_those_that_run(tmp_path: Path) -> None:
    """With a program in the place of DVC that only says that it was started, and waits."""
    begun = tmp_path / "begun"
    begun.mkdir()
    fake = tmp_path / "dvc"
    fake.write_text(f'#!/bin/sh\ncase "$*" in *cell*) touch {begun}/$$; exec sleep 60;; esac\n')
    fake.chmod(0o755)
    code = (
        "import os, sys; from pathlib import Path; from stages import study, _stage; from stages._study import Study;"
        f"study._dvc = lambda: {str(fake)!r}; found = Study('overall', 'quick');"
        f"found.folder = Path({str(tmp_path)!r});"
        "_stage.main(lambda: study.run(found, {}, 1))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(begun.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.terminate()
    assert process.wait(20) == 143
    time.sleep(0.5)
    (child,) = begun.iterdir()
    assert not psutil.pid_exists(int(child.name))


def test_the_longest_cells_come_first(small: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise one of them may be left over for one core at the end."""
    given = {**SMALL, "quick": {**SMALL["quick"], "method": ["full", "autodim", "uniform"]}}
    given["method"] = {**SMALL["method"], "uniform": {"arms": ["uniform"], "slower": 100}}
    ordered = made(small.folder.parents[1], given)
    begun: list[str] = []
    monkeypatch.setattr(study, "_reproduce", lambda study, stage, name, jobs: begun.append(name))
    monkeypatch.setattr(study.subprocess, "run", lambda *command, **how: None)
    (ordered.folder / ".dvc").mkdir()
    (ordered.folder / "results/quick").mkdir(parents=True)
    (ordered.folder / "results/quick/table.md").write_text("")
    monkeypatch.chdir(ordered.folder)
    study.run(ordered, {}, 1)
    assert begun == ["tiny", "tiny-fm-uniform", "tiny-fm-autodim", "tiny-fm-full"]


def test_cells_that_are_here_come_first_and_cost_nothing_in_the_estimate(
    small: Study, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran(small, monkeypatch)
    study.report(small, partial=True)
    shutil.rmtree("artifacts/cells")
    monkeypatch.setattr(study, "_reproduce", lambda study, stage, name, jobs: None)
    monkeypatch.setattr(study.subprocess, "run", lambda *command, **how: None)
    Path(".dvc").mkdir()
    study.run(small, {}, 2)
    told = [line for line in capsys.readouterr().out.splitlines() if re.match(r"\[|\d+ of", line)]
    full = next(one for one in small.cells() if one.keys["method"] == "full")
    assert told[0] == "1 of 2 cells are here already"
    assert told[1].startswith("[1/2] tiny-fm-autodim, ")
    assert told[1].endswith(f" about {study._duration(full.runs * full.seconds / 2)} left")
    assert told[2].startswith("[2/2] tiny-fm-full, ") and told[2].endswith("about 0 s left")


def test_a_cell_that_is_asked_for_and_not_there_is_told_with_those_that_are(
    small: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(small.folder)
    with pytest.raises(ValueError, match="quick, has no method autodimm; it has autodim, full"):
        study.run(small, {"method": ["full", "autodimm"]}, 1)
    assert not Path(".dvc").exists()


def test_one_search_serves_many_budgets(small: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        **SMALL,
        "quick": {**SMALL["quick"], "seeds": [0]},
        "method": {"autodim": {"arms": ["searched", "full"], "budgets": [0.3, 0.5, 1.0, 1.0]}, "full": {}},
    }
    found = ran(made(small.folder.parents[1], given, "budget"), monkeypatch)
    assert len(found["searches"]) == 1
    sizes = {row["budget"]: row["of_full"] for row in found["rows"] if row["arm"] == "searched"}
    assert all(size <= budget for budget, size in sizes.items()) and len(sizes) == 3
    assert [row["arm"] for row in found["rows"]].count("full") == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quick": {"dataset": ["tiny"], "method": ["mde"], "seeds": [0]}}, "method: mde is in the grid, but"),
        ({"method": {"autodim": {"arm": ["searched"]}, "full": {}}}, "method: autodim: no 'arm'; there are params"),
        ({"method": {"autodim": {"arms": ["serched"]}, "full": {}}}, "method: autodim: arms"),
        ({"method": {"autodim": {"params": {"dim": 0}}, "full": {}}}, "dim"),
        ({"quick": {"dataset": ["tiny"]}}, "no profile 'quick'"),
    ],
)
def test_a_slip_in_a_study_is_named_with_its_place(small: Study, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(small.folder.parents[1], {**SMALL, **changes}).cells()


def test_a_study_that_is_not_there_is_told_with_those_that_are() -> None:
    with pytest.raises(ValueError, match="no study 'overal' in studies; there are budget, case"):
        Study("overal", "quick")
    assert ROOT.samefile(Path(__file__).parents[1])


def test_the_notebook_shows_the_cells_and_the_curves_of_a_study(small: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbclient
    import nbformat

    given = {
        "quick": {"dataset": ["tiny"], "method": ["autodim"], "seeds": [0, 1]},
        "method": {"autodim": {"arms": ["searched", "uniform"], "budgets": [0.3, 1.0]}},
    }
    budget = made(small.folder.parents[1], given, "budget")
    found = ran(budget, monkeypatch)
    synchronise(study.ROOT)
    study.report(budget)
    rows = pd.read_csv(budget.folder / "results/quick/table.csv")
    assert rows["mlflow_run"].notna().all() and rows["mlflow_run"].nunique() >= 2
    notebook = nbformat.read(ROOT / "notebooks/studies.ipynb", as_version=4)
    place = {"metadata": {"path": str(study.ROOT)}}
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3", resources=place).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    shown = [output.data for output in outputs if output.output_type in ("display_data", "execute_result")]
    mean = sum(row["auc"] for row in found["rows"] if row["arm"] == "searched" and row["budget"] == 0.3) / 2
    assert any(f"{mean:.4f}" in data.get("text/html", "") and "tiny-autodim" in data["text/html"] for data in shown)
    assert sum("image/png" in data for data in shown) == 1
    assert any("# Study: budget" in data.get("text/markdown", "") for data in shown)
    table = (budget.folder / "results/quick/table.md").read_text()
    sizes = {(arm, seed): [] for arm in ARMS for seed in (0, 1)}
    for row in found["rows"]:
        sizes[row["arm"], row["seed"]].append(row["bytes"])
    low = max(min(some) for some in sizes.values())
    full = round(found["rows"][0]["bytes"] / found["rows"][0]["of_full"])
    assert f"{low:,} to {full:,}" in table


def test_a_method_without_a_control_of_its_own_stands_beside_the_uniform_cell_nearest_in_bytes(tmp_path: Path) -> None:
    study_ = made(
        tmp_path,
        {"quick": {"dataset": ["tiny"], "method": ["uniform", "a", "b", "c", "d"], "seeds": [0, 1, 2]}},
    )
    sizes = {("uniform", 0.1): 100, ("uniform", 0.2): 200, ("a", 0.1): 105, ("a", 0.2): 190, ("b", 0.2): 140}
    sizes |= {("uniform", 0.025): 25, ("uniform", 0.075): 75}
    aucs = {("uniform", 0.025): 0.6, ("uniform", 0.075): 0.65}
    aucs |= {("uniform", 0.1): 0.7, ("uniform", 0.2): 0.8, ("a", 0.1): 0.72, ("a", 0.2): 0.75, ("b", 0.2): 0.7}
    spread = {0: -0.01, 1: 0.0, 2: 0.01}
    rows = pd.DataFrame(
        [
            {
                **{"dataset": "tiny", "method": method, "budget": budget, "arm": "searched", "seed": seed},
                **{"auc": auc + spread[seed] * (1.1 if method == "a" else 1), "logloss": 0.5, "seconds": 2.0},
                **{"bytes": sizes[method, budget], "of_full": sizes[method, budget] / 1000, "search_seconds": None},
                **{"training_bytes": 2**20},
            }
            for (method, budget), auc in aucs.items()
            for seed in spread
        ]
    )
    found = {title: cells for title, _, cells in _tables._contests(study_, rows)}
    assert list(found) == ["tiny, other sizes", "tiny, budget 10%", "tiny, budget 20%"]
    assert [line[4] for line in found["tiny, other sizes"]] == ["7.5%", "2.5%"]
    [a, uniform] = found["tiny, budget 10%"]
    assert a[:5] == ["a", "0.7200 ± 0.0110", "0.5000 ± 0.0000", "105", "10.5%"] and a[5].startswith("+0.0200 (")
    assert a[6:9] == ["1.05", "<.001", "more"]  # .0008, the only test of its table
    assert uniform[:2] == ["uniform", "0.7000 ± 0.0100"] and uniform[5] == ""
    lines = {line[0]: line for line in found["tiny, budget 20%"]}
    assert lines["a"][5].startswith("-0.0500 (") and lines["a"][6] == "0.95" and lines["a"][8] == "less"
    assert lines["b"][6:9] == ["1.40", "", "not equal in size"]  # 140 is nearer to 100 than to 200, by the ratio
    [(_, head, standings)] = _tables._standings(study_, rows)
    of = {line[0]: dict(zip(head, line, strict=True)) for line in standings}
    assert (of["a"]["average rank"], of["uniform"]["average rank"], of["b"]["average rank"]) == ("1.5", "1.5", "")
    pooled = [1.1 * by - 0.015 - by for by in spread.values()]  # of each seed, over both budgets
    low, high = stats.t.interval(0.95, 2, np.mean(pooled), stats.sem(pooled))
    assert of["a"]["mean difference, tiny"] == f"-0.0150 ({low:+.4f} to {high:+.4f})"
    assert of["a"]["p, tiny"] == f"{stats.ttest_1samp(pooled, 0).pvalue:.3f}" and of["b"]["mean difference, tiny"] == ""
    assert (of["a"]["more"], of["a"]["less"], of["a"]["no difference shown"]) == ("1", "1", "0")
    assert of["b"]["not equal in size"] == "1" and of["uniform"]["more"] == ""
    assert not _tables._claims(study_, rows)
    (study_.folder / "claims.csv").write_text(
        "source,claim,method,sign,against\nA 2001,a is better,a,>,d\n,a is better,a,>,b\n,a loses nothing,a,>=,full\n"
        ",c is better,c,>,a\n,a is better,a,>,c\n"
    )
    full = rows[(rows["method"] == "uniform") & (rows["budget"] == 0.1)].assign(method="full", budget=None, bytes=1000)
    d = rows[rows["method"] == "a"].assign(method="d", auc=lambda of: of["auc"] - 0.02 * (of["budget"] == 0.2))
    d = d.assign(auc=d["auc"] + [0.001, -0.001, 0, 0.002, 0, 0.001])
    [(_, head, claims)] = _tables._claims(study_, pd.concat([rows, full, d]))
    lines = [dict(zip(head, line, strict=True)) for line in claims]
    assert (lines[0]["source"], lines[0]["tested"], lines[0]["at, tiny"]) == ("A 2001", "a > d", "10%, 20%")
    pooled = [0.01 - by for by in (0.0015, -0.0005, 0.0005)]
    low, high = stats.t.interval(0.95, 2, np.mean(pooled), stats.sem(pooled))
    assert lines[0]["difference, tiny"] == f"{np.mean(pooled):+.4f} ({low:+.4f} to {high:+.4f})"
    assert lines[0]["p, tiny"] == f"{stats.ttest_1samp(pooled, 0).pvalue:.3f}"
    assert lines[0]["claim, tiny"] == "supported"
    assert lines[1]["claim, tiny"] == "not equal in size"  # 190 beside 140
    assert lines[2]["difference, tiny"].startswith("+0.0500 (") and lines[2]["at, tiny"] == "20%"
    assert lines[2]["claim, tiny"] == "supported" and lines[2]["p, tiny"] == ""
    assert set(lines[3].values()) == {"", "c is better", "c > a"}
    assert set(lines[4].values()) == {"", "a is better", "a > c"}


def test_no_loss_is_judged_by_the_interval_and_a_gain_by_the_corrected_p() -> None:
    def judged(sign: str, low: float, high: float, p: float | None = None) -> str:
        return _tables._upheld(sign, {"mean": (low + high) / 2, "interval": [low, high]}, p)

    assert judged(">=", -0.0019, 0.01) == "supported" and judged(">=", -0.01, -0.0021) == "contradicted"
    assert judged(">=", -0.0021, 0.0) == judged(">=", -0.003, -0.0019) == "undecided"
    assert judged(">", 0.001, 0.002, 0.04) == "supported" and judged(">", -0.002, -0.001, 0.04) == "contradicted"
    assert judged(">", 0.001, 0.002, 0.06) == "undecided"
    assert _tables._upheld(">", {"mean": 1.0, "interval": None}, None) == "no test"


def test_the_claims_are_of_methods_that_there_are() -> None:
    claims = pd.read_csv(STUDIES / "overall/claims.csv", keep_default_na=False)
    assert list(claims) == ["source", "claim", "method", "sign", "against"]
    assert ((claims["sign"] == ">=") == (claims["against"] == "full")).all()
    assert set(claims["method"]) | set(claims["against"]) <= set(names("methods"))
    assert not claims.duplicated(["method", "against"]).any() and claims["claim"].str.len().all()


def test_of_two_controls_near_enough_it_is_the_larger_one(tmp_path: Path) -> None:
    study_ = made(tmp_path, {"quick": {"dataset": ["tiny"], "method": ["uniform", "a"], "seeds": [0]}})
    sizes = {"uniform": (100, 120), "a": (105,)}
    groups = [
        ({"dataset": "tiny", "method": m, "arm": "searched", "budget": size}, pd.DataFrame({"bytes": [size]}))
        for m, all_of_them in sizes.items()
        for size in all_of_them
    ]
    control = _tables._control(study_, *groups[2], groups)
    assert control is not None and control["bytes"].tolist() == [120]


def test_the_verdict_tells_what_holds_for_all_tests_from_what_holds_alone() -> None:
    one = {"mean": -0.01, "p_value": 0.01, "size": 0.9}
    assert _tables._verdict(one, 0.04) == "less" and _tables._verdict(one, 0.2) == "less, alone"
    assert _tables._verdict({**one, "p_value": 0.06}, 0.9) == "no difference shown"
    assert _tables._verdict({**one, "size": 1.3}, None) == "not equal in size"
    assert _tables._verdict({**one, "p_value": None}, None) == "no test"  # of one seed


def test_settings_that_differ_in_the_retraining_alone_share_their_search(small: Study) -> None:
    searched, retrained = {"search": {"lr": 0.02}}, {"retrain": {"lr": 0.02}}
    entry = {"tuned": True, "tuning": [{}, searched, retrained, {**searched, **retrained}]}
    found = made(small.folder.parents[1], {**SMALL, "method": {"autodim": entry, "full": {}}})
    settings = found.cell({"dataset": "tiny", "backbone": "fm", "method": "autodim"}).settings()
    assert [_cell._first_alike(settings, number) for number in range(4)] == [0, 1, 0, 1]
