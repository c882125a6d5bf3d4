"""What a sweep may search, and trials as commands for DVC."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.utils.hydra import apply_overrides

from pipeline.sweeps import space as spaces
from pipeline.workflow.yaml_values import read_yaml


@pytest.mark.parametrize(
    ("base", "choices"),
    [
        ("small", ["small", {"default": "small", "user": "paper"}]),
        ({"default": "small", "user": "paper"}, ["paper", "small"]),
        ({"default": "small", "zip": "paper"}, ["small", {"default": "paper", "user": "small"}]),
    ],
)
def test_a_command_gives_params_yaml_the_values_whatever_it_held(tmp_path: Path, base: Any, choices: list[Any]) -> None:
    params = {"search": {"candidates": base, "lr": 0.1}}
    found = spaces.read({"search": {"candidates": choices, "lr": {"low": 1e-6, "high": 1e-2, "log": True}}}, params)
    candidates = found["search", "candidates"]
    assert isinstance(candidates, spaces.Choices)
    drawn = {"candidates": candidates.labels()[1], "lr": 0.000010000321}  # as Optuna keeps them
    values = {path: leaf.value(drawn[path[1]]) for path, leaf in found.items()}
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(params))
    apply_overrides(str(file), [word for word in shlex.split(spaces.command(params, values))[3:] if word != "-S"])
    assert read_yaml(file) == spaces.apply(params, values) == {"search": {"candidates": choices[1], "lr": 0.00001}}


def test_a_range_is_of_whole_numbers_where_the_parameter_is_one() -> None:
    params = {"search": {"lr": 0.1, "epochs": 4}}
    found = spaces.read({"search": {name: {"low": 1, "high": 3} for name in params["search"]}}, params)
    lr, epochs = found["search", "lr"], found["search", "epochs"]
    assert lr == spaces.Range(1.0, 3.0) and epochs == spaces.Range(1, 3)
    assert isinstance(lr, spaces.Range) and isinstance(epochs, spaces.Range) and epochs.whole and not lr.whole
    assert lr.value(1.234567) == 1.235 and lr.value(2.99999) == 3.0 and epochs.value(2) == 2


def test_fields_of_a_group_get_one_set_of_candidates() -> None:
    params = {"search": {"candidates": "small"}}
    found = spaces.read({"search": {"candidates": {"default": ["small", "even"], "user, item": ["a", "b"]}}}, params)
    values = {path: leaf.ends()[1] for path, leaf in found.items()}
    expected = {"search": {"candidates": {"default": "even", "user": "b", "item": "b"}}}
    assert spaces.apply(params, values) == spaces.patch(params, values) == expected
    assert params == {"search": {"candidates": "small"}}
