"""What names a sweep's study, and settings that are refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.project import Project
from tests.sweeps.sweeps import here


def test_the_study_is_another_if_what_is_searched_or_fixed_changes(ready: Project, tmp_path: Path) -> None:
    def name(**changes: Any) -> str:
        shutil.copy(plain / "params.yaml", project.folder)
        with project.give(**changes).inside():
            return here().name

    def space(*warm_up: float) -> dict[str, Any]:
        return {"method": {"options": {"autodim": {"warm_up": warm_up}}}, "search": {"architecture": {"every": [1, 2]}}}

    project, plain = ready.copy(tmp_path / "project"), tmp_path / "plain"
    plain.mkdir()
    shutil.copy(project.give(sweep__space=space(0.1, 0.6)).folder / "params.yaml", plain)
    same = [
        {},
        {"sweep__trials": 9, "sweep__workers": 4},
        {"method__options__autodim__warm_up": 0.3, "search__architecture__every": 7},  # which the space gives
        {"stream__windows": 7},
    ]
    others = [
        {"sweep__space": space(0.1, 0.5)},
        {"sweep__seed": 1},
        {"sweep__sampler": "random"},
        {"sweep__objective": "budget", "sweep__budget": 0.5},
        {"search__epochs": 3},
        {"retrain__seeds": [1]},
        {"candidates__even": [2, 8]},
        {"derive__budget": 0.5},
    ]
    [unchanged] = {name(**changes) for changes in same}
    assert len({unchanged, *(name(**changes) for changes in others)}) == 1 + len(others)
    schema = project.folder / "artifacts/encoded/schema.json"
    schema.write_text(json.dumps({**json.loads(schema.read_text()), "raw_sha256": "0" * 64}))
    assert name() != unchanged


def within(**space: Any) -> dict[str, Any]:
    return {"sweep__space": space}


def temperature(**space: Any) -> dict[str, Any]:
    return within(method={"options": {"autodim": {"temperature": space}}})


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"sweep__trials": 0}, "params.yaml: sweep.trials must be a whole number of at least 1, got 0"),
    ({"sweep__sampler": "cma"}, "sweep.sampler must be one of tpe, random, nsga2, got 'cma'"),
    ({"sweep__name": "a/b"}, "sweep.name must be of letters, digits, '_', '.' and '-', got 'a/b'"),
    ({"sweep__objective": "budget"}, "sweep: objective 'budget' needs a budget"),
    ({"sweep__budget": 0.5}, "objective 'pareto' takes no budget; set it to null"),
    (
        {"sweep__objective": "budget", "sweep__budget": "25%"},
        "sweep.budget must be a whole number of bytes above 1, or a share",
    ),
    ({"sweep__storage": "sqlite:///x.db"}, "sweep: there is no 'storage'"),
    ({"sweep__space": {}}, "sweep.space is empty; name at least one parameter to search"),
    (
        within(search={"lr": 0.1}),
        "sweep.space.search.lr must be a list of choices, or a range {low: ..., high: ...}",
    ),
    (within(search={"lr": [0.1]}), "sweep.space.search.lr must be at least two choices, all different, got [0.1]"),
    (within(search={"lr": [0.1, 0.1]}), "sweep.space.search.lr must be at least two choices, all different"),
    (within(search={"lr": {"low": 0.1}}), "sweep.space.search.lr: 'high' is missing"),
    (within(search={"lr": {"low": 0.1, "high": 0.01}}), "search.lr: low must be below high, got 0.1 and 0.01"),
    (within(search={"lr": {"low": 0, "high": 0.1, "log": True}}), "with log, low must be above 0 and there is no step"),
    (within(search={"lr": {"low": 0.1, "high": 1.0, "step": 0}}), "search.lr: step must be above 0, got 0"),
    (within(search={"rate": [1, 2]}), "params.yaml has no search.rate to search; there are batch_size, epochs"),
    (within(search={"seed": [1, 2]}), "a sweep may not change search.seed; it may change what is in method.options"),
    (within(dim=[8, 16]), "a sweep may not change dim; it may change what is in method.options, backbone.options"),
    (within(search={"epochs": [1, -1]}), "sweep.space allows search.epochs=-1, which is refused: params.yaml: search."),
    (within(search={"candidates": ["planted", "paper"]}), "allows search.candidates=paper, which is refused: params."),
    (
        within(search={"candidates": {"usr": ["planted", "even"]}}),
        "allows search.candidates.usr=planted, which is refused: no field ['usr'] in the schema; there are ['user', ",
    ),
    (
        within(search={"architecture": {"every": [0, 1]}}),
        "allows search.architecture.every=0, which is refused: params.",
    ),
    (temperature(start=[0.3, 1], floor={"low": 0.1, "high": 1}), "method.options.autodim.temperature.floor=1.0, which"),
]


@pytest.mark.parametrize(("changes", "told"), WRONG, ids=[str(changes) for changes, _ in WRONG])
def test_a_wrong_setting_is_told_with_its_value_and_place_before_any_trial(
    ready: Project, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    project = ready.copy(tmp_path)
    before = project.files()
    assert told in project.give(**changes).error("sweep")
    assert project.files() == before and not list(tmp_path.glob(".pipeline/optuna/*"))
