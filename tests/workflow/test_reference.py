"""What ``--help`` and the docs say of the parameters."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from pipeline.workflow.params import declared
from pipeline.workflow.reference import as_text, entries
from pipeline.workflow.yaml_values import read_yaml
from tests.project import ROOT

VALUES = read_yaml(ROOT / "params.yaml")
FREE = {
    *("candidates", "method.options", "sweep.space", "dataset.options", "task.options", "backbone.options"),
    "chain.options",
}


def leaves(values: Any, above: str = "") -> Iterator[str]:
    """The dotted keys of nested mappings, down to those whose keys the user is free to choose."""
    for name, value in values.items():
        key = f"{above}{name}"
        yield from leaves(value, f"{key}.") if isinstance(value, dict) and key not in FREE else [key]


def test_every_parameter_of_the_file_has_a_meaning_and_valid_values() -> None:
    described = {entry.key: entry for entry in entries(VALUES)}
    assert set(leaves(yaml.safe_load((ROOT / "params.yaml").read_text()))) <= set(described)
    for entry in described.values():
        assert len(entry.meaning) > 5 and not entry.meaning.endswith("."), entry
        assert entry.valid != "a value", entry


def test_the_keys_of_a_mapping_that_can_be_null_are_described_too() -> None:
    finetune = entries(VALUES, ["retrain.finetune"])
    assert [entry.key for entry in finetune] == ["retrain.finetune", "retrain.finetune.epochs", "retrain.finetune.lr"]
    assert finetune[0].value is None and finetune[1].valid == "a whole number of at least 1"


def test_a_key_selects_itself_and_what_is_below_it_but_no_longer_name() -> None:
    assert [entry.key for entry in entries(VALUES, ["dim", "retrain.seeds"])] == ["dim", "retrain.seeds"]
    assert all(entry.key.startswith("search.architecture.") for entry in entries(VALUES, ["search.architecture"]))
    assert entries(VALUES, ["retrain.see"]) == []


@pytest.mark.parametrize("stage", ["derive", "stream"])
def test_the_help_of_a_stage_shows_the_parameters_that_it_may_read(stage: str) -> None:
    command = [sys.executable, "-m", f"stages.{stage}", "--help"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert shown.endswith(as_text(entries(VALUES, declared(stage))) + "\n")
    assert "\n  retrain.seeds: [0, 1, 2]\n      one model is trained for each. Valid: " in shown or stage == "stream"
    assert "evaluate.tolerance" not in shown
