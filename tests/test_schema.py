"""The data contract: slots, subsets, and a file that is refused by its name."""

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


def test_a_subset_keeps_the_schema_s_order() -> None:
    assert SCHEMA.subset(["age", "user"]) == Schema((Field("user", 7), Field("age", 3)))
    with pytest.raises(ValueError, match=r"no field \['zip'\] in the schema; there are \['user', 'tags'"):
        SCHEMA.subset(["user", "zip"])
    with pytest.raises(ValueError, match="at least one field"):
        SCHEMA.subset([])


def test_what_is_written_is_what_is_read_and_other_keys_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps({**SCHEMA.to_dict(), "rows": {"train": 3}}))
    assert Schema.load(path) == SCHEMA


def test_names_must_be_unique_and_sizes_positive() -> None:
    with pytest.raises(ValueError, match=r"occur twice: \['a'\]"):
        Schema((Field("a", 2), Field("b", 2), Field("a", 3)))
    for wrong in ({"cardinality": 0}, {"cardinality": 3, "width": 0}):
        with pytest.raises(ValueError, match="field 'a': cardinality and width must be at least 1"):
            Field("a", **wrong)


@pytest.mark.parametrize(
    "text",
    [
        '{"fields": [{"name": "us',
        "[]",
        '{"rows": 3}',
        '{"fields": [{"name": "user"}]}',
        '{"fields": [{"name": "user", "cardinality": "7"}]}',
        '{"fields": [{"name": "user", "cardinality": 7, "size": 1}]}',
        '{"fields": []}',
    ],
)
def test_a_file_that_is_no_schema_is_refused_by_its_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "schema.json").write_text(text)
    with pytest.raises(ValueError, match=r"schema\.json: is no schema \(.*\); encode the data again"):
        Schema.load(tmp_path / "schema.json")
