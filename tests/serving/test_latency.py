"""How fast a served model is and how much memory it takes, as a process of its own measures it."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.allocation.allocation import Allocation
from pipeline.data.schema import Field, Schema
from pipeline.embeddings.table import Table
from pipeline.experiment.method import build
from pipeline.models.model import assemble
from pipeline.serving.latency import forms, measured
from pipeline.workflow.plug import plug


def test_a_process_measures_how_fast_a_file_is_and_that_it_takes_its_size_of_memory(tmp_path: Path) -> None:
    schema = Schema((Field("user", 100_000), Field("item", 50)))
    allocation = Allocation("autodim", {"user": 16, "item": 4})
    served = forms(assemble(schema, 16, allocation, build, plug("backbones", "fm").Backbone))
    files = {name: tmp_path / name for name in served}
    for name, form in served.items():
        form.save(files[name])
    ids = np.array([[5, 6], [99_999, 49], [0, 0]], dtype=np.int32)  # fewer than a batch
    found = measured(files, ids, tmp_path)
    assert list(found) == ["float32", "int8"]
    for name, figures in found.items():
        size = files[name].stat().st_size
        assert size > 2**20 and 0.99 * size < figures["resident_bytes"] < size + 2**20
        assert list(figures["latency_ms"]) == ["1", "2000"]
        assert all(time["median"] > 0 for time in figures["latency_ms"].values())


def test_a_model_whose_weights_int8_cannot_hold_is_served_in_float32_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    schema = Schema((Field("user", 5), Field("item", 4)))
    allocation = Allocation("autodim", {"user": 4, "item": 4})
    model = assemble(schema, 4, allocation, build, plug("backbones", "fm").Backbone)
    next(m for m in model.embedding.modules() if isinstance(m, Table)).weight.data[2] = 1e12
    with caplog.at_level(logging.WARNING, "pipeline.serving"):
        assert list(forms(model)) == ["float32"]
    assert "no form in int8: row 2 of a table goes up to 1e+12" in caplog.text


def test_an_embedding_of_another_kind_has_no_form_for_serving(tmp_path: Path) -> None:
    schema = Schema((Field("user", 5), Field("item", 4)))
    allocation = Allocation("autodim", {"user": 4, "item": 2})
    model = assemble(schema, 4, allocation, build, plug("backbones", "fm").Backbone)
    model.embedding = torch.nn.Identity()  # type: ignore[assignment]
    assert forms(model) == {}
    assert measured({}, np.zeros((1, 2), np.int32), tmp_path) == {}
