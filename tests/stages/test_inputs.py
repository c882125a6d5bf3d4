"""Inputs of a stage that are missing, cut short, edited by hand, or of other data."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

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


@pytest.mark.parametrize(
    ("stage", "name", "by"),
    [
        ("encode", "raw/table.parquet", "ingest"),
        ("search", "encoded/train/ids.npy", "encode"),
        ("search", "encoded/val/labels.npy", "encode"),
        ("retrain", "encoded/arch/ids.npy", "encode"),
        ("evaluate", "encoded/test/ids.npy", "encode"),
    ],
)
def test_a_single_bit_that_has_flipped_is_noticed(spoilable: Project, stage: str, name: str, by: str) -> None:
    with spoilt(spoilable, name) as file:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        with unharmed(spoilable):
            assert f"artifacts/{name}: is not as {by} wrote it: its checksum is not that of" in spoilable.error(stage)


def test_ids_that_the_schema_does_not_have_are_noticed(spoilable: Project) -> None:
    with spoilt(spoilable, "encoded/schema.json") as file:
        record = json.loads(file.read_bytes())
        record["fields"][0]["cardinality"] = 5
        file.write_text(json.dumps(record))
        with unharmed(spoilable):
            assert "train/ids.npy: has ids of field 'user' that schema.json does not have; " in spoilable.error(
                "search"
            )


def feature(record: Any) -> Any:
    return record["features"]["user"]


@pytest.mark.parametrize(
    ("stage", "name", "edit", "named"),
    [
        (
            "encode",
            "raw/raw.json",
            lambda r: r.clear(),
            "raw.json: is not a record with rows, sha256, fields, time, or",
        ),
        (
            "encode",
            "raw/raw.json",
            lambda r: r["fields"].update(user="x"),
            "has fields of kinds other than categorical",
        ),
        ("encode", "raw/raw.json", lambda r: r["fields"].update(x="bag"), "table.parquet does not have: ['x']"),
        (
            "derive",
            "search/scores.json",
            lambda r: feature(r)["log_probability"].pop(),
            "'user' must have 4 numbers as",
        ),
        (
            "derive",
            "search/scores.json",
            lambda r: feature(r).pop("log_probability"),
            "'user' must have 4 numbers as sc",
        ),
        (
            "derive",
            "search/scores.json",
            lambda r: feature(r).update(candidates=[1, 2.7, 4, 8]),
            "from 0 to 8, got 2.7",
        ),
        ("derive", "search/scores.json", lambda r: r.update(dim=10**12), "dim must be a whole number from 1 to 4,096"),
        (
            "derive",
            "search/scores.json",
            lambda r: r.update(method="pep"),
            "the search used method pep, but the method",
        ),
        (
            "evaluate",
            "search/scores.json",
            lambda r: r.update(method="pep"),
            "are of method autodim, but artifacts/sear",
        ),
        (
            "retrain",
            "controls.json",
            lambda r: r.update(full=[]),
            "controls.json: is not a mapping of controls to seeds",
        ),
        ("retrain", "controls.json", lambda r: r["full"].update({"0": 3}), "controls.json: full, seed 0: "),
        (
            "retrain",
            "allocation.json",
            lambda r: r.update(method="pep"),
            "pep needs 'cells' of its allocation, and it is",
        ),
        (
            "evaluate",
            "models/full/seed-1/history.json",
            lambda r: r.clear(),
            "json: is not a list of epochs with auc and",
        ),
    ],
)
def test_json_that_was_edited_by_hand_is_refused_where_it_is_wrong(
    spoilable: Project, stage: str, name: str, edit: Any, named: str
) -> None:
    with spoilt(spoilable, name) as file:
        record = json.loads(file.read_bytes())
        edit(record)
        file.write_text(json.dumps(record))
        with unharmed(spoilable):
            assert named in spoilable.error(stage)


def test_weights_that_are_not_finite_or_of_another_type_are_refused(spoilable: Project) -> None:
    name = "models/full/seed-1/model.safetensors"
    for change, named in (
        (lambda tensor: tensor * float("nan"), "holds numbers that are not finite; delete it and run `dvc repro`"),
        (lambda tensor: tensor.half(), "does not hold the model that model.json and"),
    ):
        with spoilt(spoilable, name) as file:
            state = load_file(file)
            save_file({key: change(v) if v.is_floating_point() else v for key, v in state.items()}, file)
            with unharmed(spoilable):
                assert named in spoilable.error("evaluate")


def test_tables_of_the_search_and_of_planted_labels_are_named_if_they_are_broken(spoilable: Project) -> None:
    for name, named in (("trajectory.parquet", "is not a Parquet file"), ("encoded/test/oracle.npy", "is not a whole")):
        with spoilt(spoilable, name) as file:
            file.write_text("x")
            with unharmed(spoilable):
                assert f"artifacts/{name}: {named}" in spoilable.error("evaluate")


def test_drafts_that_a_killed_stage_left_are_removed(planted: Project, tmp_path: Path) -> None:
    project = planted.copy(tmp_path)
    dead = tmp_path / "artifacts/.encoded.999999999"
    dead.mkdir()
    (dead / "ids.npy").write_text("half")
    project.run("encode")
    assert not dead.exists() and not list((tmp_path / "artifacts").glob(".*"))
