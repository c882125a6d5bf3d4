"""The folder that `encode` writes, as those who read it see it."""

import json
from pathlib import Path

import pytest

from pipeline.data.encoded import Encoded, Labels

SCHEMA = {"fields": [{"name": "user", "cardinality": 7, "width": 1}]}


def test_encoded_data_must_say_what_the_labels_of_every_part_are(tmp_path: Path) -> None:
    about = {"rows": 3, "mean": 0.5, "least": 0.0, "most": 2.5, "binary": False}
    whole = dict.fromkeys(("train", "arch", "val", "test"), about)
    path = tmp_path / "schema.json"
    path.write_text(json.dumps({**SCHEMA, "labels": whole}))
    assert Encoded.load(tmp_path).labels["val"] == Labels(3, 0.5, 0.0, 2.5, False)
    short = {"labels": {**whole, "val": {"rows": 3}}}
    for wrong in ({}, {"labels": 3}, {"labels": {"train": about}}, short, {"labels": {part: [1] for part in whole}}):
        path.write_text(json.dumps({**SCHEMA, **wrong}))
        with pytest.raises(ValueError, match=r"schema.json: does not describe the labels \(.*\); delete it"):
            Encoded.load(tmp_path)
