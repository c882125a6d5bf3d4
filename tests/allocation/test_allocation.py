"""The file of a method's decision: readable, always the same, and refused if it does not fit the schema."""

import json
from pathlib import Path

import pytest

from pipeline.allocation.allocation import Allocation
from pipeline.data.schema import Field, Schema

SCHEMA = Schema((Field("user", 7), Field("item", 5), Field("age", 3)))
DIMS = {"user": 8, "item": 0, "age": 2}


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    allocation = Allocation("autodim", DIMS, {"note": "é", "inner": {"b": 1, "a": None}})
    allocation.save(tmp_path / "new" / "allocation.json")
    assert Allocation.load(tmp_path / "new" / "allocation.json", SCHEMA) == allocation
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["allocation.json"]
    assert allocation.kept() == ("user", "age")


def test_equal_allocations_give_equal_files_in_whatever_order_they_were_made(tmp_path: Path) -> None:
    Allocation("autodim", DIMS, {"a": 1, "b": 2}).save(tmp_path / "one")
    Allocation("autodim", dict(reversed(DIMS.items())), {"b": 2, "a": 1}).save(tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert '\n    "user": 8' in (tmp_path / "one").read_text()


def test_settings_may_be_left_out(tmp_path: Path) -> None:
    (tmp_path / "hand.json").write_text('{"method": "autodim", "dims": {"user": 8}}')
    assert Allocation.load(tmp_path / "hand.json").settings == {}


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "allocation.json"
    Allocation("autodim", DIMS).save(path)
    before = path.read_bytes()
    with pytest.raises(ValueError):
        Allocation("autodim", DIMS, {"rate": float("nan")}).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("dims", "named"),
    [
        ({"user": 8, "item": 2}, "'age'"),
        (DIMS | {"zip": 4}, "'zip'"),
        ({"user": 8, "item": 2, "Age": 2}, "'Age'.*'age'"),
    ],
)
def test_another_schema_is_refused_by_the_names_of_the_fields(dims: dict[str, int], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Allocation("autodim", dims).check(SCHEMA)


def test_dims_are_whole_numbers_of_at_least_0() -> None:
    for value in (-1, 2.0, "2", True, None):
        with pytest.raises(ValueError, match=rf"dims must be whole numbers of at least 0 .* got {{'age': {value!r}}}"):
            Allocation("autodim", {"user": 8, "age": value})  # type: ignore[dict-item]


def test_at_least_one_field_is_kept() -> None:
    with pytest.raises(ValueError, match="dims must keep at least one field"):
        Allocation("autodim", {"user": 0, "age": 0})


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"method": "autodim", "dims": {"user": 8, "user": 2}}', "unique.*user"),
        ('{"method": "autodim", "dims": {"user": 8}, "dim": 4}', "'dim'"),
        ('{"dims": {"user": 8}}', "'method'"),
        ('{"method": "autodim", "dims": [8, 2]}', r"\[8, 2\]"),
        ("[1]", r"\[1\]"),
        ('{"method": "autodim", "dims": {"user": 8}', "delimiter"),
        (json.dumps({"method": "autodim", "dims": {"user": 8}}), "'age', 'item'"),
    ],
)
def test_a_wrong_file_is_refused_by_its_name(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "hand.json").write_text(text)
    with pytest.raises(ValueError, match=rf"hand\.json: .*{named}.*(edit the file)"):
        Allocation.load(tmp_path / "hand.json", SCHEMA)
