"""Studies of agents: cells of the arm ``agents``, and agents on the item tables of other cells."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.studies import chained
from pipeline.studies import report as study_report
from pipeline.studies.comparisons import budget_text
from pipeline.studies.grid import Study
from stages import study as stage
from tests.project import ROOT
from tests.studies.conftest import inside
from tests.studies.small import QUIET, run_cell

pytestmark = QUIET
CHAIN = {
    "worlds": ["tabular"],
    "options": {"tabular": {"items": 10, "types": 2}},
    "agents": ["deepchain", "deepchain_free", "deepchain_knowing"],
    "transitions": [200, 400],
    "sessions": 150,
    "modelling": {"epochs": 1, "memory": 4, "hidden": 8},
    "networks": {"memory": 4, "hidden": 8},
    "learning": {"steps": 5, "batch_size": 16},
}
GRID: dict[str, Any] = {
    "quick": {"dataset": ["tiny"], "chain": ["few", "dear"], "seeds": [0, 1]},
    "bytes": {"dataset": ["sessions"], "method": ["full", "uniform"], "seeds": [0, 1]},
    "chain": {
        "few": {"arms": ["agents"], "params": {"chain": CHAIN}},
        "dear": {"arms": ["agents"], "params": {"chain": {**CHAIN, "rewards": {"order": 50.0}}}},
    },
    "method": {
        "full": {"arms": ["full"], "played": True, "params": {"method": {"name": "full"}}},
        "uniform": {"arms": ["searched"], "budgets": [0.5], "played": True, "params": {"method": {"name": "uniform"}}},
    },
}
TRAINING = {"epochs": 1, "batch_size": 200}
SESSIONS = {
    "dataset": {
        "name": "sessions",
        "path": str(ROOT / "data"),
        "options": {"transitions": 1500, "options": {"items": 10, "types": 2}},
    },
    "task": {"name": "feedback"},
    "backbone": {"name": "session"},
    "dim": 8,
    "search": TRAINING,
    "retrain": TRAINING,
    "chain": CHAIN,
}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "studies/chain"
    place.mkdir(parents=True)
    (place / "params.yaml").write_text(yaml.safe_dump(GRID, sort_keys=False))
    tiny = {"dataset": {"name": "synthetic", "path": str(ROOT / "data"), "options": {"rows": 600}}}
    known = {"quick": {"tiny": {"params": tiny}}, "bytes": {"sessions": {"params": SESSIONS}}}
    (place.parent / "datasets.yaml").write_text(yaml.safe_dump(known))
    with inside(tmp_path):
        yield place


def test_a_cell_of_agents_goes_on_after_a_kill(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = Study("chain", "quick", folder)
    done = chained._done
    number = 0

    def killed(*args: Any) -> dict[str, Any]:
        nonlocal number
        number += 1
        if number == 9:
            raise KeyboardInterrupt
        return done(*args)

    monkeypatch.setattr(chained, "_done", killed)
    with pytest.raises(KeyboardInterrupt):
        run_cell(study, dataset="tiny", chain="few")
    kept = sorted(folder.parents[1].glob(".pipeline/studies/chain/*/tabular/*/*.json"))
    assert len(kept) == 8
    monkeypatch.setattr(chained, "_done", done)
    result = run_cell(study, dataset="tiny", chain="few")
    policies = ["deepchain", "deepchain_free", "deepchain_knowing", "greedy", "popular", "random"]
    arms = [f"{policy}, {number} transitions" for number in (200, 400) for policy in policies]
    assert [(row["seed"], row["arm"]) for row in result["rows"]] == [(seed, arm) for seed in (0, 1) for arm in arms]
    assert not list(folder.parents[1].glob(".pipeline/studies/chain/*"))
    assert [one["policy"] for one in result["sessions"]["bounds"]][:2] == ["optimum", "best of its own page"]
    dear = run_cell(study, dataset="tiny", chain="dear")
    reward = {row["policy"]: row for row in dear["sessions"]["rows"] if row["seed"] == 0 and row["transitions"] == 200}
    assert reward["random"]["reward"] == pytest.approx(reward["random"]["clicks"] + 50 * reward["random"]["orders"])
    same = {row["policy"]: row for row in result["sessions"]["rows"] if row["seed"] == 0 and row["transitions"] == 200}
    assert same["random"]["clicks"] == reward["random"]["clicks"]  # the same users, the same luck
    text = stage.study_report.write(study)
    assert "few, tabular: reward per session, 400 known transitions" in text and "dear, tabular: sessions" in text
    assert len(list((folder / "results/quick").glob("*.svg"))) == 4


def test_agents_play_with_the_item_table_of_each_model(folder: Path) -> None:
    study = Study("chain", "bytes", folder)
    full, half = (run_cell(study, dataset="sessions", method=name) for name in ("full", "uniform"))
    for result in (full, half):
        assert result["metrics"]["reward"] == "reward per session" and result["objective"] == "r_squared"
        assert all(row["metrics"]["reward"] > 0 and row["item_bytes"] > 0 for row in result["rows"])
    assert half["rows"][0]["item_bytes"] < full["rows"][0]["item_bytes"]
    assert not list(folder.parents[1].glob(".pipeline/**/*.agents"))
    (table,) = chained.by_bytes(study, [full, half])
    assert [row[0] for row in table.rows] == ["full", f"uniform, {budget_text(0.5)}"]
    ours, theirs = ([row["metrics"]["reward"] for row in result["rows"]] for result in (half, full))
    assert float(table.rows[1][5].split(" ")[0]) == pytest.approx((sum(ours) - sum(theirs)) / 2, abs=6e-4)
    assert "smaller item tables" in study_report.write(study)


def test_the_arm_of_agents_stands_alone(folder: Path) -> None:
    values = json.loads(json.dumps(GRID))
    values["chain"]["few"]["arms"] = ["agents", "full"]
    (folder / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    with pytest.raises(ValueError, match="the arm agents stands alone and has no budget, got arms"):
        Study("chain", "quick", folder).cells()
