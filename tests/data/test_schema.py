"""The data contract: slots, subsets, and files that are refused by their name."""

import json
from pathlib import Path

import pytest

from pipeline.data.schema import Field, Schema

SCHEMA = Schema((Field("user", 7), Field("tags", 6, width=3), Field("item", 5), Field("age", 3)))


def test_slots_follow_the_fields_in_their_order() -> None:
    assert SCHEMA.num_slots == 6 and len(SCHEMA) == 4
    assert SCHEMA.slot_fields.tolist() == [0, 1, 1, 1, 2, 3]
    assert SCHEMA.cardinalities.tolist() == [7, 6, 5, 3]
    assert SCHEMA.slots_of(["item", "tags"]).tolist() == [1, 2, 3, 4]


def test_a_subset_keeps_the_order_of_the_schema() -> None:
    assert SCHEMA.subset(["age", "user"]) == Schema((Field("user", 7), Field("age", 3)))
    with pytest.raises(ValueError, match=r"no field \['zip'\] in the schema; there are \['user', 'tags'"):
        SCHEMA.subset(["user", "zip"])
    with pytest.raises(ValueError, match="must have at least one field"):
        SCHEMA.subset([])


def test_a_written_schema_is_read_back_and_other_keys_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps({**SCHEMA.to_dict(), "rows": {"train": 3}}))
    assert Schema.load(path) == SCHEMA


def test_names_must_be_unique_and_sizes_positive() -> None:
    with pytest.raises(ValueError, match=r"field names must be unique, got \['a'\] twice"):
        Schema((Field("a", 2), Field("b", 2), Field("a", 3)))
    for wrong in ({"cardinality": 0}, {"cardinality": 3, "width": 0}):
        with pytest.raises(
            ValueError, match="field 'a': cardinality and width must be whole numbers of at least 1, got"
        ):
            Field("a", **wrong)


def test_a_file_that_is_not_a_schema_is_refused_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    for text, why in (
        ('{"fields": [{"name": "us', "is not JSON"),
        ("[]", "is not a schema"),
        ('{"rows": 3}', "is not a schema"),
        ('{"fields": [{"name": "user"}]}', "is not a schema"),
        ('{"fields": [{"name": "user", "cardinality": "7"}]}', "is not a schema"),
        ('{"fields": [{"name": "user", "cardinality": 7, "size": 1}]}', "is not a schema"),
        ('{"fields": []}', "is not a schema"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=rf"schema\.json: {why} \(.*\); delete it and run `dvc repro`"):
            Schema.load(path)
