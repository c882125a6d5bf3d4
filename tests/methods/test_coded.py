"""Coded tables of a dimension of their own. How they are coded is tested in test_coded of the embeddings."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.embeddings.coded import CodedTables
from pipeline.experiment.derive import derive, evidence
from pipeline.experiment.find import find
from pipeline.experiment.train import train
from tests.experiment.small import experiment, write_rows


def method(**options: Any) -> dict[str, Any]:
    return {"name": "coded", "options": {"coded": options}}


def test_the_tables_may_have_a_dimension_below_that_of_the_full_tables(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "data")
    sizes = {}
    for options in ({}, {"dim": 4}, {"dim": 3}):
        here = experiment(data, method=method(**options), backbone={"name": "deepfm", "options": {"hidden": [4]}})
        found = find(here, tmp_path / "work")
        own, given = here.method, evidence(found, here.schema, 0.5)
        allocation, size = derive(own, given)
        assert given.dim == 4 and size <= given.full_bytes / 2  # the budget is a share of the same full tables
        model = train(here, allocation, 0, tmp_path / "last.ckpt").model
        assert isinstance(model.embedding, CodedTables)
        sizes[options.get("dim")] = model.embedding.dim, model.embedding.width, size
    assert sizes[None] == sizes[4] and sizes[None][:2] == (4, 5) and sizes[3][:2] == (3, 4)
    assert sizes[3][2] > 0.4 * given.full_bytes


def test_a_larger_dimension_is_refused_before_a_search(tmp_path: Path) -> None:
    here = experiment(write_rows(tmp_path / "data"), method=method(dim=5))
    with pytest.raises(ValueError, match=r"method\.options\.coded: dim must be at most 4, the dim of the full tables"):
        find(here, tmp_path)
