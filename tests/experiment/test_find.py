"""What a method is asked, what it finds, and how that is kept."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.evidence import Trial
from pipeline.data.schema import Field, Schema
from pipeline.embeddings.cost import spent
from pipeline.experiment.find import check, find, nothing_found, problem
from pipeline.experiment.found import Found
from pipeline.experiment.method import build
from pipeline.workflow.outputs import write_json
from tests.experiment.small import experiment
from tests.training.clicks import SCHEMA

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]


def test_a_method_sees_the_rows_of_train_and_arch_and_opens_no_others(encoded: Path, tmp_path: Path) -> None:
    for part in ("train", "arch"):
        shutil.copytree(encoded / part, tmp_path / part)
    shutil.copy(encoded / "schema.json", tmp_path)
    here = experiment(tmp_path)
    train, arch = (np.load(encoded / part / "ids.npy") for part in ("train", "arch"))
    seen = problem(here).training_ids
    assert seen is not None and np.array_equal(seen(), np.concatenate([train, arch]))
    thin = problem(here, share=0.25).training_ids
    assert thin is not None and np.array_equal(thin(), np.concatenate([train[::4], arch[::4]]))
    for part in ("val", "test"):
        with pytest.raises(FileNotFoundError, match=part):
            here.data.split(part)


def test_a_problem_is_asked_with_the_method_s_own_candidates_and_prices(encoded: Path) -> None:
    asked = problem(
        experiment(
            encoded, search={"candidates": {"default": "few", "tags": "one"}, "seed": 7}, candidates={"one": [4]}
        )
    )
    assert (asked.method, asked.schema, asked.dim, asked.seed) == ("autodim", SCHEMA, 4, 7)
    assert asked.candidates == ((1, 2, 4), (1, 2, 4), (4,))
    assert asked.prices[:, 0].tolist() == [4 * (30 + 4), 4 * (20 + 4), 4 * 8 * 4]
    assert asked.full_bytes == 4 * 4 * (30 + 20 + 8)
    own = problem(experiment(encoded, method={"name": "sseds"}))
    assert own.candidates == ((0, 1, 2, 3, 4),) * 3


def test_parameters_are_checked_before_any_row_is_read(encoded: Path, tmp_path: Path) -> None:
    shutil.copy(encoded / "schema.json", tmp_path)
    for name in ("autodim", "random_search", "lma", "full"):
        check(experiment(tmp_path, method={"name": name}))
    with pytest.raises(ValueError, match=r"params.yaml: method.options.autodim: there is no 'gains' \(did you mean"):
        check(experiment(tmp_path, method={"options": {"autodim": {"gains": "none"}}}))
    with pytest.raises(ValueError, match=r"search.candidates: there is no set 'many'; there are even"):
        check(experiment(tmp_path, search={"candidates": "many"}))


def test_a_method_without_a_find_finds_nothing(encoded: Path, tmp_path: Path) -> None:
    here = experiment(encoded, method={"name": "uniform"})
    found = find(here, tmp_path)
    assert found == nothing_found(here) and not list(tmp_path.iterdir())
    assert found.to_dict()["features"]["tags"] == {"candidates": [1, 2, 4]}


def test_a_search_says_what_its_supernet_found(encoded: Path, tmp_path: Path) -> None:
    recorded: list[tuple[str, ...]] = []
    found = find(experiment(encoded), tmp_path, lambda step, names, values: recorded.append(names))
    assert (found.steps, found.planned_steps) == (8, 8) and len(found.validation) == 2
    assert found.scores is not None
    last = found.trajectory[-1][2]
    for of_field, p in zip(found.scores, last, strict=True):
        assert np.exp(of_field) == pytest.approx(p.numpy(), abs=1e-4)
    leads = [abs(float(p.sort().values[-1] - p.sort().values[-2])) for p in last]
    assert found.undecided == tuple(name for name, lead in zip(SCHEMA.names, leads, strict=True) if lead < 0.1)
    assert any("val/auc" in names for names in recorded) and any("expected_bytes" in names for names in recorded)


def test_proposals_are_trained_and_those_that_are_done_are_not_trained_again(encoded: Path, tmp_path: Path) -> None:
    method = {"name": "random_search", "options": {"random_search": {"draws": 6, "target": 750}}}
    here = experiment(encoded, method=method)
    whole = find(here, tmp_path / "whole")
    assert len(whole.trials) == 3 and all(0 < trial.quality < 1 for trial in whole.trials)
    assert [t.bytes for t in whole.trials] == [spent(build, SCHEMA, 4, t.allocation).bytes for t in whole.trials]
    assert sorted(path.name for path in (tmp_path / "whole").iterdir()) == [f"proposal-{i}.json" for i in range(3)]
    first = {"quality": 0.123, "allocation": whole.trials[0].allocation.to_dict()}
    write_json(tmp_path / "resumed/proposal-0.json", first)
    resumed = find(here, tmp_path / "resumed")
    assert [trial.quality for trial in resumed.trials] == [0.123, *(trial.quality for trial in whole.trials[1:])]


# --- scores.json


SCORED = Found(
    method="autodim",
    seed=3,
    dim=4,
    names=("user", "item"),
    candidates=((1, 2, 4), (2, 4)),
    scores=((-0.5, -1.5, -2.0), (-0.1, -2.4)),
    arrays={"mask": np.array([[1.5, float("nan")], [0.0, -np.inf]])},
    undecided=("item",),
    validation=[{"step": 10, "auc": 0.75}],
    steps=10,
    planned_steps=20,
    training_bytes=512,
    trajectory=[(10, 1.0, torch.zeros(2, 3))],
)
PAIR = Schema((Field("user", 9), Field("item", 5)))


def test_what_is_found_is_read_back_but_for_its_trajectory(tmp_path: Path) -> None:
    file = tmp_path / "scores.json"
    write_json(file, SCORED.to_dict())
    found = Found.load(file, PAIR)
    assert found.arrays["mask"].tobytes() == SCORED.arrays["mask"].tobytes()
    for name in vars(SCORED).keys() - {"arrays", "trajectory"}:
        read, written = getattr(found, name), getattr(SCORED, name)
        assert (list(read) if name == "validation" else read) == written, name
    assert found.trajectory == []
    trials = (Trial(Allocation("autodim", {"user": 1, "item": 2}), 0.625, 99),)
    proposed = Found("random_search", 0, 4, ("user", "item"), ((1, 2), (2,)), trials=trials)
    write_json(file, proposed.to_dict())
    assert Found.load(file, PAIR) == proposed


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"features": {"item": {"candidates": [1]}}}, "has other fields than the schema of the encoded data"),
        (
            {"features": {name: {"candidates": [1, 2], "log_probability": [-1.0]} for name in ("user", "item")}},
            "is not what a search writes: field 'user' must have 2 numbers as scores, one for each candidate",
        ),
        ({"features": {}}, "has other fields than the schema"),
        ({"features": [1]}, "is not what a search writes"),
        ({"dim": None}, "is not what a search writes"),
        ({"trials": [{"quality": 0.5}]}, "is not what a search writes"),
        ({"arrays": {"mask": "x"}}, "is not what a search writes"),
    ],
)
def test_a_file_that_no_search_wrote_is_refused_by_its_name(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    file = tmp_path / "scores.json"
    file.write_text(json.dumps({**SCORED.to_dict(), **change}))
    with pytest.raises(ValueError, match=rf"scores\.json: {re.escape(why)}.*; delete it and run `dvc repro`"):
        Found.load(file, PAIR)
