"""The stage `chain`: what it writes, what it keeps, and what it refuses."""

import csv
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.project import Project

USERS = {"dim": 4, "users": 80, "items": 50, "history": 6, "known": 3}
SMALL = {
    "chain__options": {"tabular": {"items": 10, "types": 2}, "fitted": USERS},
    "chain__agents": ["deepchain", "independent", "deepchain_knowing"],
    "chain__seeds": [0, 1],
    "chain__transitions": [300, 1000],
    "chain__sessions": 200,
    "chain__longest": 30,
    "chain__modelling": {"epochs": 1, "memory": 4, "hidden": 8},
    "chain__networks": {"memory": 4, "hidden": 8, "exact_items": 20, "candidates": 5},
    "chain__learning": {"steps": 20, "batch_size": 32},
    "chain__workers": 2,
}  # fmt: skip
POLICIES = {"deepchain", "deepchain_knowing", "independent", "greedy", "popular", "random"}


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, forks: None) -> Project:
    return Project(tmp_path_factory.mktemp("chain"), **SMALL).run("chain")


def rows(project: Project, name: str = "rewards", **of: str) -> list[dict[str, str]]:
    with (project.folder / f"artifacts/chain/{name}.csv").open() as file:
        return [row for row in csv.DictReader(file) if all(row[key] == value for key, value in of.items())]


def test_every_policy_plays_in_every_world_of_a_test(compared: Project) -> None:
    tests = {"tabular": {"same"}, "fitted": {"same", "test", "shifted"}}
    for world, names in tests.items():
        for number in ("300", "1000"):
            for seed in ("0", "1"):
                own = rows(compared, world=world, seed=seed, transitions=number)
                assert {(row["policy"], row["test"]) for row in own} == {(p, t) for p in POLICIES for t in names}
                assert len(own) == len(POLICIES) * len(names)
    assert all(1 <= float(row["steps"]) <= 30 and 0 <= float(row["leaves"]) <= 1 for row in rows(compared))
    luck = {float(row["reward"]) for row in rows(compared, policy="random", world="tabular", seed="0")}
    assert len(luck) == 1  # it learns nothing from more transitions


def test_rewards_are_those_of_clicks_and_orders(compared: Project) -> None:
    for row in rows(compared):
        assert float(row["reward"]) == pytest.approx(float(row["clicks"]) + 5 * float(row["orders"]), abs=1e-3)


def test_the_optimum_is_told_where_it_is_known(compared: Project) -> None:
    bounds = rows(compared, "bounds")
    assert {row["world"] for row in bounds} == {"tabular"} and len(bounds) == 2 * 3
    best = {row["seed"]: float(row["reward"]) for row in bounds if row["policy"] == "optimum"}
    assert all(float(row["reward"]) <= best[row["seed"]] + 1e-6 for row in bounds)


def test_the_page_shows_means_over_seeds(compared: Project) -> None:
    page = (compared.folder / "artifacts/chain/table.md").read_text()
    own = rows(compared, world="tabular", test="same", policy="greedy", transitions="1000")
    found = [float(row["reward"]) for row in own]
    (mean, sd), *_ = re.findall(  # the world comes first
        r"^\| greedy \| ([0-9.]+) ± ([0-9.]+) \|", page, re.MULTILINE
    )
    assert [float(mean), float(sd)] == pytest.approx([np.mean(found), np.std(found, ddof=1)], abs=1.01e-3)
    html = (compared.folder / "artifacts/chain/report.html").read_text()
    assert html.count("<svg") == 2 + 4  # of every world; and a curve for every test


def test_finished_passes_are_kept_and_lost_ones_come_out_the_same(
    compared: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = compared.copy(tmp_path)
    before = project.files()
    kept = tmp_path / ".pipeline/chain"
    for lost in ("deepchain-1000.json", "behaviour-1000.pt"):
        (next(kept.rglob(f"fitted/seed-1/{lost}"))).unlink()
    shutil.rmtree(tmp_path / "artifacts/chain")
    capsys.readouterr()
    project.run("chain")
    assert "chain: 1 of 48 passes" in capsys.readouterr().out
    assert project.files() == before
    project.give(chain__agents=["deepchain", "independent", "deepchain_knowing", "single"]).run("chain")
    assert "chain: 8 of 56 passes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"chain__worlds": ["tabula"]}, "worlds: there is no world 'tabula' (did you mean 'tabular'?); there are"),
        ({"chain__worlds": []}, "chain.worlds must be at least one"),
        ({"chain__options": {"tabular": {"items": 5}}}, "items must be at least 10"),
        ({"chain__options": {"tabular": {"item": 5}}}, "chain.options.tabular: there is no 'item'"),
        ({"chain__agents": ["deep"]}, "chain.agents[0] must be one of deepchain"),
        ({"chain__agents": ["single", "single"]}, "no value twice"),
        ({"chain__transitions": [10]}, "chain.transitions[0] must be a whole number of at least 100, got 10"),
        ({"chain__epsilon": 1.5}, "chain.epsilon must be"),
        ({"chain__users": "encoded", "chain__worlds": ["fitted"]}, "schema.json"),
    ],
)
def test_wrong_parameters_are_told_before_anything_is_done(tmp_path: Path, given: Any, message: str) -> None:
    project = Project(tmp_path, **{**SMALL, **given})
    assert message in project.error("chain")
    assert not (project.folder / "artifacts/chain").exists() and not list(tmp_path.glob(".pipeline/chain/*/*"))
