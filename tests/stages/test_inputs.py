"""Inputs of a stage that are missing, cut short, edited by hand, or of other data."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.project import Project
from tests.stages.checks import unharmed

ARTIFACTS = {  # stage: inputs that earlier stages write
    "encode": ["raw/raw.json", "raw/table.parquet"],
    "search": ["encoded/schema.json", "encoded/train/ids.npy", "encoded/arch/labels.npy", "encoded/val/ids.npy"],
    "derive": ["encoded/schema.json", "search/scores.json"],
    "retrain": ["allocation.json", "controls.json", "encoded/schema.json", "encoded/arch/ids.npy"],
    "evaluate": [
        "encoded/schema.json",
        "encoded/test/labels.npy",
        "models/full/seed-1/model.safetensors",
        "models/random/seed-0/allocation.json",
        "search/scores.json",
    ],
}
INPUTS = [(stage, name) for stage, files in ARTIFACTS.items() for name in files]


@contextmanager
def spoilt(project: Project, name: str) -> Iterator[Path]:
    """One of the project's files, to be spoilt; put back in the end."""
    file = project.folder / "artifacts" / name
    held = file.read_bytes()
    try:
        yield file
    finally:
        file.write_bytes(held)


@pytest.mark.parametrize(("stage", "name"), INPUTS)
def test_a_stage_before_its_turn_says_what_is_missing(spoilable: Project, stage: str, name: str) -> None:
    with spoilt(spoilable, name) as file:
        file.unlink()
        with unharmed(spoilable):
            assert f"there is no artifacts/{name}; run `dvc repro`" in spoilable.error(stage)


@pytest.mark.parametrize(("stage", "name"), INPUTS)
def test_a_truncated_input_is_refused_by_its_name_with_a_remedy(spoilable: Project, stage: str, name: str) -> None:
    with spoilt(spoilable, name) as file:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        with unharmed(spoilable):
            message = spoilable.error(stage)
    assert f"artifacts/{name}: " in message and "again" in message


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        ({"dims": {"usr": 4}}, "dims are given for ['usr'], which the schema does not have"),
        ({"dims": {"user": 99}}, "dims must lie between 1 and dim=8, got {'user': 99}"),
        ({"dims": {"user": "8"}}, "dims must be whole numbers of at least 0"),
        ({"method": "nope"}, "artifacts/allocation.json: method: there is no method 'nope'; there are "),
        ({"dim": 4}, "artifacts/allocation.json: the keys of an allocation must be ['method', 'dims'"),
    ],
)
def test_an_allocation_edited_by_hand_is_checked(spoilable: Project, edit: dict[str, Any], named: str) -> None:
    with spoilt(spoilable, "allocation.json") as file:
        record = json.loads(file.read_bytes())
        for key, value in edit.items():
            record[key] = record[key] | value if isinstance(value, dict) else value
        file.write_text(json.dumps(record))
        with unharmed(spoilable):
            assert named in spoilable.error("retrain")


def test_scores_of_other_fields_are_refused(spoilable: Project, table: Project) -> None:
    with spoilt(spoilable, "encoded/schema.json") as file:
        shutil.copy(table.folder / "artifacts/encoded/schema.json", file)
        with unharmed(spoilable):
            assert "artifacts/search/scores.json: has other fields than the schema" in spoilable.error("derive")


def test_drafts_that_a_killed_stage_left_are_removed(planted: Project, tmp_path: Path) -> None:
    project = planted.copy(tmp_path)
    dead = tmp_path / "artifacts/.encoded.999999999"
    dead.mkdir()
    (dead / "ids.npy").write_text("half")
    project.run("encode")
    assert not dead.exists() and not list((tmp_path / "artifacts").glob(".*"))
