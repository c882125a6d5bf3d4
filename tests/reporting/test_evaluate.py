"""What the report computes, against the saved models and against numbers worked by hand."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.data.encoded import Encoded
from pipeline.data.schema import Field, Schema
from pipeline.data.split import Split
from pipeline.experiment.code import Coder
from pipeline.experiment.experiment import Experiment
from pipeline.experiment.saved import load
from pipeline.metrics.auc import auc, auc_influence
from pipeline.metrics.difference import difference, row_variance
from pipeline.models.model import Model, outputs
from pipeline.reporting.evaluate import planted
from pipeline.serving.served import Served
from pipeline.workflow.params import Params
from tests.project import ROOT, Project


def test_a_comparison_pairs_the_seeds_and_knows_the_rows(finished: Project) -> None:
    params, encoded = finished.folder / "params.yaml", finished.folder / "artifacts/encoded"
    experiment = Experiment(Params.load(params), Encoded.load(encoded))
    test = experiment.data.split("test")
    labels = test.all_labels()
    scores = {}
    for name in ("searched", "uniform"):
        folders = [finished.folder / f"artifacts/models/{name}/seed-{seed}" for seed in (0, 1)]
        scores[name] = [outputs(load(folder, experiment)[0], test) for folder in folders]
    aucs = {name: [auc(labels, of_seed) for of_seed in of_name] for name, of_name in scores.items()}
    mean = {name: np.mean([auc_influence(labels, s) for s in of_name], axis=0) for name, of_name in scores.items()}
    variance = row_variance(mean["searched"] - mean["uniform"])
    expected = difference(aucs["searched"], aucs["uniform"], variance, len(labels))
    report = finished.read("report.json")
    (compared,) = [one for one in report["comparisons"] if one["against"] == "uniform"]
    assert compared["mean"] == pytest.approx(expected.mean) and compared["p_value"] == pytest.approx(expected.p_value)
    assert compared["interval"] == pytest.approx(list(expected.interval))
    sizes = {name: report["allocations"][name]["bytes"] for name in scores}
    assert compared["bytes_ratio"] == sizes["searched"] / sizes["uniform"]


def in_int4(model: Model) -> Model:
    """A copy with 15 levels for the numbers of each row, and the step between them in float16."""
    rounded = copy.deepcopy(model)
    for table in rounded.embedding.tables.values():
        values = table.weight.detach().numpy()
        exact = np.abs(values).max(1, keepdims=True).astype(np.float64) / 7
        step = exact.astype(np.float16)
        step = np.where(step < exact, np.nextafter(step, np.float16(np.inf)), step).astype(np.float64)
        table.weight.data.copy_(torch.from_numpy(np.round(values / step) * step))
    return rounded


def test_a_form_is_measured_on_val_and_on_test_and_compared_at_its_size(finished: Project) -> None:
    params, encoded = finished.folder / "params.yaml", finished.folder / "artifacts/encoded"
    experiment = Experiment(Params.load(params), Encoded.load(encoded))
    full = [load(finished.folder / f"artifacts/models/full/seed-{seed}", experiment)[0] for seed in (0, 1)]
    report = finished.read("report.json")
    size = report["allocations"]["searched"]["bytes"]
    made = {
        "full in int8": [Served.of(model, int8=True) for model in full],
        "full in int4": [in_int4(model) for model in full],
        "full, coded": [Coder(experiment, model).coded(size) for model in full],
    }
    values = {}
    for part in ("val", "test"):
        rows = experiment.data.split(part)
        for name, models in made.items():
            values[name, part] = [auc(rows.all_labels(), outputs(model, rows)) for model in models]
    for name, size in (("full in int8", 8), ("full in int4", 4)):
        (of_kind,) = [form for form in report["forms"] if form["name"] == name]
        for part in ("val", "test"):
            assert of_kind[part]["values"] == pytest.approx(values[name, part], abs=1e-4)
        rows = experiment.schema.num_rows
        assert of_kind["bytes"] == rows * experiment.dim * size // 8 + 2 * rows  # a scale of float16 for each row
    searched = report["allocations"]["searched"]["metrics"]["auc"]["mean"]
    (compared,) = [one for one in report["comparisons"] if one["against"] == "full, coded"]
    assert compared["mean"] == pytest.approx(searched - np.mean(values["full, coded", "test"]))
    assert compared["bytes_ratio"] >= 1


def test_a_field_and_its_copy_count_once_by_the_larger_dimension(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    np.save(tmp_path / "test/oracle.npy", np.array([0.1, 0.2, 0.3, 0.4]))
    test = Split((np.zeros((4, 4), np.int32),), (np.array([0, 1, 0, 1], dtype=np.uint8),))
    facts = {"ranks": {"a": 1, "b": 2, "c": 4}, "copies": {"twin": "c"}}
    schema = Schema(tuple(Field(name, 5) for name in ("a", "b", "c", "twin")))
    params = Params.load(ROOT / "params.yaml")

    def known(dims: dict[str, int], **record: object) -> dict:
        return planted(Experiment(params, Encoded(tmp_path, schema, {}, record)), dims, test)

    found = known({"a": 1, "b": 2, "c": 1, "twin": 8}, facts=facts)
    assert found["rank_correlation"] == pytest.approx(1.0)
    assert found["best_possible"] == 0.75
    assert found["planted"][2] == {"feature": "c", "rank": 4, "dim": 8}
    assert known({"a": 2, "b": 2, "c": 2, "twin": 1}, facts=facts)["rank_correlation"] is None
    assert known({"a": 2, "b": 2, "c": 2, "twin": 1}) == {}
