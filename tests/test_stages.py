"""The six stages in one process, on small data: all searching methods, all backbones, and what users get wrong."""

import contextlib
import json
import shutil
import sqlite3
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from pipeline.allocation.allocation import Allocation
from pipeline.data.schema import Field, Schema
from pipeline.models.model import assemble
from pipeline.workflow.plug import names, plug
from stages import _serving, _stage, evaluate
from tests.project import STAGES, Project, gone

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]
DVC = yaml.safe_load((Path(__file__).parents[1] / "dvc.yaml").read_text())["stages"]
MADE = [("autodim", backbone) for backbone in names("backbones")]
MADE += [(method, "deepfm") for method in names("methods") if method != "autodim"]
ALLOCATIONS = ("searched", "full", "uniform", "random")
FIELDS = ["user", "item", "price", "tags"]


@pytest.fixture(scope="session")
def finished(planted: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """All stages' results on planted data with the defaults: do not write into it, copy it."""
    with warnings.catch_warnings():  # a session's fixture does not see the marks above
        warnings.simplefilter("ignore")
        return planted.copy(tmp_path_factory.mktemp("finished")).run("search", "derive", "retrain", "evaluate")


def check_report(project: Project, controls: Sequence[str] = ALLOCATIONS[1:], **expected: Any) -> dict[str, Any]:
    report = project.read("report.json")
    for key, value in expected.items():
        assert report[key] == value
    seeds = report["seeds"]
    fields = [field["name"] for field in project.read("encoded/schema.json")["fields"]]
    assert list(report["allocations"]) == ["searched", *controls]
    for entry in report["allocations"].values():
        for key in ("auc", "logloss"):
            values = entry[key]["values"]
            assert len(values) == len(seeds) and entry[key]["mean"] == pytest.approx(np.mean(values))
            if len(seeds) == 1:
                assert entry[key]["sd"] is None
            else:
                assert entry[key]["sd"] == pytest.approx(np.std(values, ddof=1))
        assert all(0 < value < 1 for value in entry["auc"]["values"])
        for dims in entry["dims"] if isinstance(entry["dims"], list) else [entry["dims"]]:
            assert sorted(dims) == sorted(fields)
        assert entry["ratio"] == entry["bytes"] / report["allocations"]["full"]["bytes"]
        if entry["served"] is not None:
            assert 0 < entry["table_params"] < entry["params"]
            assert entry["bytes"] >= 4 * entry["table_params"]
            check_served(entry, report["allocations"]["full"]["bytes"])
    assert [compared["against"] for compared in report["comparisons"]] == list(controls)
    for compared in report["comparisons"]:
        low, high = compared["interval"]
        mean = {name: entry["auc"]["mean"] for name, entry in report["allocations"].items()}
        assert compared["auc_difference"] == pytest.approx(mean["searched"] - mean[compared["against"]])
        assert low <= high and 0 < compared["p_value"] <= 1
    shown = (project.folder / "artifacts/report.md").read_text()
    for name, entry in report["allocations"].items():
        assert f"| {name} | {entry['auc']['mean']:.4f}" in shown
        if entry["served"] is None:
            assert f"| {entry['bytes']:,} | {entry['ratio']:.1%} | – | – |" in shown
            continue
        float32, int8 = entry["served"]["float32"], entry["served"]["int8"]
        times = [
            " | ".join(f"{form['latency_ms'][batch]['median']:.2f}" for batch in ("1", "2000"))
            for form in (float32, int8)
        ]
        assert f"| {entry['bytes']:,} | {entry['ratio']:.1%} | {times[0]} |" in shown
        assert f"| {name} | {int8['bytes']:,} | {int8['ratio']:.1%} | {int8['auc_loss']:z.4f} | {times[1]} |" in shown
    return report


def check_served(entry: dict[str, Any], full: int) -> None:
    """The part of an allocation's entry that says how it is served."""
    assert list(entry["served"]) == ["float32", "int8"]
    for served in entry["served"].values():
        assert served["ratio"] == served["bytes"] / full
        assert ("bytes_values" in served) == ("bytes_values" in entry)
        lost = np.subtract(entry["auc"]["values"], served["auc"]["values"])
        assert served["auc_loss"] == pytest.approx(lost.mean(), abs=1e-12)
        assert served["logloss"]["mean"] == pytest.approx(np.mean(served["logloss"]["values"]))
        for time in served["latency_ms"].values():
            low, high = time["quartiles"]
            assert 0 < low <= time["median"] <= high
    float32, int8 = entry["served"]["float32"], entry["served"]["int8"]
    assert float32["bytes"] == entry["bytes"] and float32.get("bytes_values") == entry.get("bytes_values")
    assert float32["largest_logit_difference"] < 1e-4  # sums in another order
    assert float32["logloss"]["values"] == pytest.approx(entry["logloss"]["values"], abs=1e-5)
    assert int8["bytes"] < float32["bytes"]
    assert float32["largest_logit_difference"] < int8["largest_logit_difference"] < 1


def test_planted_data_end_to_end_with_the_defaults(finished: Project) -> None:
    report = check_report(finished, dataset="synthetic", backbone="deepfm", method="autodim", seeds=[0, 1])
    assert 0.5 < report["best_possible_auc"] < 1
    assert report["rank_correlation"] is None or -1 <= report["rank_correlation"] <= 1
    full = report["allocations"]["full"]
    rows = {field["name"]: field["cardinality"] for field in finished.read("encoded/schema.json")["fields"]}
    assert full["bytes"] == 4 * 8 * sum(rows.values()) and set(full["dims"].values()) == {8}
    assert full["served"]["int8"]["bytes"] == (8 + 2) * sum(rows.values())  # a byte a number, two for a row's scale
    searched = report["allocations"]["searched"]
    assert searched["dims"] == finished.read("allocation.json")["dims"]
    spent = sum((d + 2) * rows[name] + (d * 8 * 4 if d < 8 else 0) for name, d in searched["dims"].items())
    assert searched["served"]["int8"]["bytes"] == spent
    assert abs(report["allocations"]["random"]["bytes"] / searched["bytes"] - 1) <= 0.02
    metrics = finished.read("metrics.json")
    assert metrics["searched"] == {
        "auc": searched["auc"]["mean"],
        "logloss": searched["logloss"]["mean"],
        "bytes": searched["bytes"],
        "int8_auc": searched["served"]["int8"]["auc"]["mean"],
        "int8_bytes": searched["served"]["int8"]["bytes"],
    }
    trajectory = pd.read_parquet(finished.folder / "artifacts/trajectory.parquet")
    last = trajectory[trajectory.step == trajectory.step.max()]
    scores = finished.read("search/scores.json")["features"]
    for name, found in scores.items():
        of_field = last[last.feature == name].sort_values("candidate_dim")
        assert of_field.candidate_dim.tolist() == found["candidates"]
        np.testing.assert_allclose(of_field.probability, np.exp(found["log_probability"]), rtol=1e-4)


@pytest.mark.parametrize(("method", "backbone"), MADE)
def test_a_table_end_to_end_with_every_method_and_every_backbone(
    table: Project, tmp_path: Path, method: str, backbone: str
) -> None:
    """The name alone is another method; of a size that no control can have there is none."""
    project = table.copy(tmp_path).give(backbone__name=backbone, method__name=method)
    project.run(*STAGES[2:])
    controls = list(project.read("controls.json"))
    assert {"full", "uniform"} <= set(controls) <= set(ALLOCATIONS)
    report = check_report(project, controls, dataset="table", backbone=backbone, method=method)
    assert sorted(report["allocations"]["searched"]["dims"]) == sorted(FIELDS)
    assert "best_possible_auc" not in report


VARIANTS: dict[str, dict[str, Any]] = {
    "single level": {"search__architecture": {"level": "single", "lr": 0.02}},
    "second order": {"search__architecture": {"order": 2, "lr": 0.02, "every": 2}},
    "padding": {"method__options__autodim": {"unification": "padding"}},
    "separate": {"method__options__autodim": {"sharing": "separate"}},
    "separate and padding": {"method__options__autodim": {"sharing": "separate", "unification": "padding"}},
    "shared maps, no gain": {"method__options__autodim": {"transform": "global", "gain": "none"}},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_every_form_of_the_search_decides_on_every_field(
    table: Project, tmp_path: Path, changes: dict[str, Any]
) -> None:
    plain = {"method__options__autodim": {}, "search__architecture": {"lr": 0.02, "every": 1}}
    project = table.copy(tmp_path).give(**{**plain, **changes}).run("search", "derive")
    scores = project.read("search/scores.json")["features"]
    for found in scores.values():
        p = np.exp(found["log_probability"])
        assert p.sum() == pytest.approx(1, abs=1e-5) and p.max() - p.min() > 1e-4  # the architecture was trained
    best = {name: s["candidates"][int(np.argmax(s["log_probability"]))] for name, s in scores.items()}
    assert project.read("allocation.json")["dims"] == best


def test_candidates_by_field_and_a_dropped_field_all_the_way(table: Project, tmp_path: Path) -> None:
    project = table.copy(tmp_path).give(
        candidates={"small": [2, 8], "other": [1, 4, 8], "maybe": [0, 2], "never": [0]},
        search__candidates={"default": "small", "user": "other", "tags": "maybe", "price": "never"},
    )
    project.run("search", "derive", "retrain", "evaluate")
    scores = project.read("search/scores.json")["features"]
    assert {name: found["candidates"] for name, found in scores.items()} == {
        "user": [1, 4, 8],
        "item": [2, 8],
        "price": [0],
        "tags": [0, 2],
    }
    report = check_report(project)
    dims = report["allocations"]["searched"]["dims"]
    assert dims["price"] == 0 and dims["user"] in (1, 4, 8) and dims["item"] in (2, 8) and dims["tags"] in (0, 2)
    assert report["allocations"]["searched"]["bytes_per_field"]["price"] == 0
    assert report["allocations"]["full"]["dims"]["price"] == 8
    table_of_plots = pd.read_csv(tmp_path / "artifacts/trajectory.csv")
    series = set(zip(table_of_plots.feature, table_of_plots.dimension, strict=True))
    assert series == {(name, d) for name, found in scores.items() for d in found["candidates"]}
    # By hand, to be sure that both a bag and a first field can go:
    edited = project.read("allocation.json")
    edited["dims"] |= {"user": 0, "tags": 0, "item": 2}
    (tmp_path / "artifacts/allocation.json").write_text(json.dumps(edited))
    project.give(retrain__seeds=[0]).run("retrain", "evaluate")
    assert check_report(project)["allocations"]["searched"]["bytes"] < 4 * (2 * 21 + 2 * 8) + 1


def test_a_budget_is_kept_and_one_too_small_is_refused_with_the_least(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path).give(derive__budget=0.2).run("derive")
    full = finished.read("report.json")["allocations"]["full"]["bytes"]
    fields = {field["name"]: field["cardinality"] for field in finished.read("encoded/schema.json")["fields"]}
    dims = project.read("allocation.json")["dims"]
    spent = sum(4 * (fields[name] * d + (d * 8 if d < 8 else 0)) for name, d in dims.items())
    assert spent <= 0.2 * full < finished.read("report.json")["allocations"]["searched"]["bytes"]
    for draw in project.read("controls.json")["random"].values():
        assert sum(4 * (fields[n] * d + (d * 8 if d < 8 else 0)) for n, d in draw["dims"].items()) <= 0.2 * full
    before = project.files()
    least = sum(4 * (n + 8) for n in fields.values())
    assert least - 1 < 0.2 * full
    message = project.give(derive__budget=least - 1).error("derive")
    assert f"{least - 1} bytes or less" in message and f"the least is {least} bytes, " in message
    assert project.files() == before
    project.give(derive__budget=least).run("derive")
    assert set(project.read("allocation.json")["dims"].values()) == {1}


def test_one_seed_is_enough(table: Project, tmp_path: Path) -> None:
    project = table.copy(tmp_path).give(retrain__seeds=[5]).run("search", "derive", "retrain", "evaluate")
    report = check_report(project, seeds=[5])
    assert all(entry["auc"]["interval"] is None for entry in report["allocations"].values())
    assert "±" not in (tmp_path / "artifacts/report.md").read_text()


def test_without_patience_all_epochs_are_trained_and_the_best_is_kept(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path).give(retrain__patience=None, retrain__epochs=3, retrain__seeds=[0])
    project.run("retrain", "evaluate")
    assert len(project.read("models/searched/seed-0/history.json")) == 3
    check_report(project, seeds=[0])


def test_the_same_parameters_give_the_same_files(finished: Project, planted: Project, tmp_path: Path) -> None:
    again = planted.copy(tmp_path).run("search", "derive", "retrain")
    same = [name for name in again.files() if "/runs/" not in name]
    assert {name: again.files()[name] for name in same} == {name: finished.files()[name] for name in same}
    assert "artifacts/models/random/seed-1/model.safetensors" in same


# --- what dvc.yaml declares


class Reads(dict[str, Any]):
    """A mapping that remembers which keys, with dots between levels, were asked for."""

    def __init__(self, values: dict[str, Any], seen: set[str], prefix: str = "") -> None:
        super().__init__(values)
        self.seen, self.prefix = seen, prefix

    def __getitem__(self, key: str) -> Any:
        self.seen.add(self.prefix + key)
        value = super().__getitem__(key)
        return Reads(value, self.seen, f"{self.prefix}{key}.") if isinstance(value, dict) else value


@pytest.mark.parametrize("stage", DVC)
def test_a_stage_reads_all_parameters_and_only_the_files_that_dvc_yaml_declares(
    finished: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    project = Project(tmp_path)
    shutil.copy(finished.folder / "params.yaml", tmp_path / "params.yaml")
    for dep in DVC[stage]["deps"]:
        if dep.startswith("artifacts"):
            (tmp_path / dep).parent.mkdir(parents=True, exist_ok=True)
            if (finished.folder / dep).is_dir():
                shutil.copytree(finished.folder / dep, tmp_path / dep)
            else:
                shutil.copy(finished.folder / dep, tmp_path / dep)
    given = set(project.files())
    seen: set[str] = set()
    declared = _stage.params
    monkeypatch.setattr(_stage, "params", lambda stage: Reads(declared(stage), seen))
    project.run(stage)

    values = yaml.safe_load((tmp_path / "params.yaml").read_text())
    for key in DVC[stage]["params"]:
        own = key == stage and stage != "encode"  # whose settings are a signature's
        expected = {f"{key}.{leaf}" for leaf in values[key]} if own else {key}
        assert not expected - seen, f"{stage} never reads what dvc.yaml declares"
    outs = [Path(out) for out in [*DVC[stage]["outs"], *DVC[stage].get("metrics", [])]]
    made = {Path(name) for name in project.files()} - {Path(name) for name in given}
    assert all(any(path.is_relative_to(out) for out in outs) for path in made)
    assert all((tmp_path / out).exists() for out in outs)


def test_a_stage_gets_no_parameter_that_dvc_yaml_does_not_declare(planted: Project) -> None:
    with planted.inside():
        for stage, record in DVC.items():
            given = _stage.params(stage)
            assert set(given) == {key.split(".")[0] for key in record["params"]}
        assert set(_stage.params("derive")["retrain"]) == {"seeds"}


# --- records


def test_runs_are_journaled_by_default_and_brought_to_the_store(planted: Project, tmp_path: Path) -> None:
    project = planted.copy(tmp_path).give(search__epochs=1)
    with project.inside() as patch:
        patch.delenv("PIPELINE_TRACKING")
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        done = subprocess.run([sys.executable, "-m", "stages.search"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "search: 9 of 9 steps" in done.stdout
    assert (tmp_path / "artifacts/runs/search.jsonl").stat().st_size > 0
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as store:
        statuses = [status for (status,) in store.execute("select status from runs")]
        logged = {key for (key,) in store.execute("select distinct key from metrics")}
    assert set(statuses) == {"FINISHED"} and len(statuses) >= 2  # the configuration and its search
    assert {"val/auc", "p/user/8", "expected_bytes"} <= logged


def test_the_journal_alone_touches_no_store(finished: Project) -> None:
    runs = {path.stem for path in (finished.folder / "artifacts/runs").iterdir()}
    assert {"search", "retrain", "evaluate"} <= runs
    assert not (finished.folder / "mlflow.db").exists()


def test_every_evaluation_is_recorded_in_both_forms(finished: Project) -> None:
    lines = (finished.folder / "artifacts/runs/evaluate.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    names = {record["id"]: record["names"] for record in records if "id" in record}
    runs = [dict(zip(names[line[0]], line[2], strict=True)) for line in records if isinstance(line, list)]
    expected = [
        {"test/auc": auc, "test/int8_auc": int8_auc, "int8_bytes": size}
        for entry in finished.read("report.json")["allocations"].values()
        for int8 in [entry["served"]["int8"]]
        for auc, int8_auc, size in zip(
            entry["auc"]["values"],
            int8["auc"]["values"],
            int8.get("bytes_values", [int8["bytes"]] * 2),
            strict=True,
        )
    ]
    assert [{key: run[key] for key in expected[0]} for run in runs] == expected


# --- how models are served


def test_a_process_of_its_own_says_how_fast_a_file_is_and_that_it_takes_its_size_of_memory(tmp_path: Path) -> None:
    schema = Schema((Field("user", 100_000), Field("item", 50)))
    allocation = Allocation("autodim", {"user": 16, "item": 4})
    backbone = plug("backbones", "fm").Backbone
    forms = _serving.forms(assemble(schema, 16, allocation, plug("methods", "autodim").build, backbone))
    assert forms is not None
    project = Project(tmp_path)
    files = {name: tmp_path / name for name in forms}
    for name, served in forms.items():
        served.save(files[name])
    test = tmp_path / "artifacts/encoded/test"
    test.mkdir(parents=True)
    np.save(test / "ids.npy", np.array([[5, 6], [99_999, 49], [0, 0]], dtype=np.int32))  # fewer than a batch
    np.save(test / "labels.npy", np.array([0, 1, 1], dtype=np.uint8))
    with project.inside() as patch:
        patch.setattr(_serving, "subprocess", subprocess)
        found = _serving.measured(files)
    assert list(found) == ["float32", "int8"]
    for name, measured in found.items():
        size = files[name].stat().st_size
        assert size > 2**20 and 0.99 * size < measured["resident_bytes"] < size + 2**20
        assert list(measured["latency_ms"]) == ["1", "2000"]
        assert all(time["median"] > 0 for time in measured["latency_ms"].values())


def test_an_embedding_of_another_kind_has_no_form_to_serve() -> None:
    schema = Schema((Field("user", 5), Field("item", 4)))
    build, backbone = plug("methods", "autodim").build, plug("backbones", "fm").Backbone
    model = assemble(schema, 4, Allocation("autodim", {"user": 4, "item": 2}), build, backbone)
    model.embedding = torch.nn.Identity()  # type: ignore[assignment]
    assert _serving.forms(model) is None
    assert _serving.measured({}) == {}


def test_a_method_without_an_inference_form_is_reported_without_one(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path)
    dims = finished.read("allocation.json")["dims"]
    forms = _serving.forms
    with project.inside() as patch:
        patch.setattr(_serving, "forms", lambda model: None if model.embedding.dims == dims else forms(model))
        evaluate.run()
    report, before = project.read("report.json")["allocations"], finished.read("report.json")["allocations"]
    searched = report["searched"]
    assert searched == before["searched"] | {"served": None}
    for name in ("full", "uniform", "random"):
        check_served(report[name], before["full"]["bytes"])
    shown = (tmp_path / "artifacts/report.md").read_text()
    assert f"| {searched['bytes']:,} | {searched['ratio']:.1%} | – | – |" in shown
    assert "| searched | – | – | – | – | – |" in shown
    metrics = project.read("metrics.json")
    assert set(metrics["searched"]) == {"auc", "logloss", "bytes"} and "int8_auc" in metrics["full"]


# --- what users get wrong


@pytest.fixture(scope="session")
def spoilable(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    return finished.copy(tmp_path_factory.mktemp("spoilable"))


@contextlib.contextmanager
def unharmed(project: Project) -> Iterator[None]:
    """What a refused stage leaves: every output as it was, no draft, and afterwards the parameters as they were."""
    params, before = (project.folder / "params.yaml").read_bytes(), project.files()
    try:
        yield
        assert project.files() == before
    finally:
        (project.folder / "params.yaml").write_bytes(params)


WRONG_PARAMS: list[tuple[str, dict[str, Any], str]] = [
    ("ingest", {"dataset__name": "nope"}, "no 'nope' in pipeline/datasets; there are avazu"),
    ("ingest", {"dataset__path": None}, "params.yaml: dataset: path must be a text, however None"),
    ("ingest", {"dataset": "synthetic"}, "params.yaml: dataset must be a mapping of names to values"),
    ("ingest", {"dataset__sample": 1}, "params.yaml: dataset: no key 'sample'; it has name, options, path"),
    ("ingest", {"dataset__options": {"rows": "many"}}, "dataset.options in params.yaml: option 'rows' must be a whole"),
    ("encode", {"encode": None}, "params.yaml: encode must be a mapping"),
    ("encode", {"encode__min_count": True}, "'min_count' must be a whole number or null, however True"),
    ("encode", {"encode__split": 0.8}, "'split' must be a mapping of names to values, however 0.8"),
    ("search", {"dim": 4}, "planted goes up to 8, which is more than dim, 4; raise dim, or choose another set"),
    ("search", {"dim": "8"}, "params.yaml: dim must be a whole number of at least 1, however '8'; without quotes"),
    ("search", {"candidates__planted": [1, 2, 2]}, "candidates: planted must be distinct, and at least one"),
    ("search", {"candidates__planted": []}, "candidates: planted must be distinct, and at least one, however []"),
    ("search", {"candidates__planted": [-1, 2]}, "each is a whole number of at least 0, however {"),
    ("search", {"search__candidates": "nope"}, "no candidate set 'nope' for field 'user' in params.yaml; there are ["),
    ("search", {"search__candidates": {"user": "planted"}}, "no set for field 'item' and no default; add one"),
    ("search", {"search__candidates": {"default": "planted", "usr": "small"}}, "no field ['usr'] in the schema; there"),
    ("search", {"search__epochs": -1}, "params.yaml: search: epochs must be a whole number of at least 1, however -1"),
    ("search", {"search__epochs": gone}, "params.yaml: search: missing key 'epochs'; it has candidates, batch_size"),
    ("search", {"search__batch_size": 0}, "search: batch_size must be a whole number of at least 3, however 0"),
    ("search", {"search__lr": "0.001"}, "search: lr must be a finite number of at least 0, however '0.001'; without"),
    ("search", {"search__lr": float("nan")}, "search: lr must be a finite number of at least 0, however nan"),
    ("search", {"search__patience": 3}, "params.yaml: search: no key 'patience'; it has candidates, batch_size"),
    ("search", {"search__architecture": {"f": 10}}, "search.architecture in params.yaml: no option 'f'; valid are lr"),
    ("search", {"search__architecture": {"order": 3}}, "option 'order' must be one of [1, 2], however 3"),
    ("search", {"search__architecture": {"stable_steps": -1}}, "stable_steps is a share, above 0 and up to 1, or null"),
    ("search", {"backbone__name": "nope"}, "no 'nope' in pipeline/backbones; there are autoint, dcn_v2, deepfm"),
    ("search", {"backbone__options": {"layers": 2}}, "backbone.options: no option 'layers'; valid are hidden, dropout"),
    ("search", {"backbone__options": {"hidden": [0]}}, "an MLP needs hidden widths >= 1"),
    ("search", {"method__options": {"lr": 0.1}}, "params.yaml: method: options must be a mapping, of which each value"),
    ("search", {"method__options": {"nope": None}}, "params.yaml: method.options: no method 'nope'; "),
    (
        "search",
        {"method__options__autodim": {"tau": 1.0}},
        "method.options.autodim in params.yaml: no option 'tau'; valid",
    ),
    (
        "search",
        {"method__options__autodim": {"temperature": {"end": 1.0}}},
        "method.options: temperature in params.yaml: no option",
    ),
    ("search", {"method__options__autodim": {"sharing": "none"}}, "'sharing' must be one of ['shared', 'separate']"),
    ("search", {"evaluate__resamples": 0}, "params.yaml: evaluate: resamples must be a whole number of at least 1"),
    ("derive", {"derive__budget": "25%"}, "or a share of the full tables' "),
    ("derive", {"derive__budget": 1.5}, "budget must be a whole number of bytes above 1, or a share"),
    ("derive", {"derive__bytes": 1000}, "params.yaml: derive: no key 'bytes'; it has budget"),
    ("derive", {"retrain__seeds": []}, "params.yaml: retrain: seeds must be distinct, and at least one, however []"),
    ("retrain", {"retrain__seeds": []}, "params.yaml: retrain: seeds must be distinct, and at least one, however []"),
    ("retrain", {"retrain__seeds": [3, 3]}, "retrain: seeds must be distinct, and at least one, however [3, 3]"),
    ("retrain", {"retrain__seeds": 3}, "params.yaml: retrain: seeds must be a list, however 3"),
    ("retrain", {"retrain__seeds": [0, "1"]}, "seeds must be a list, of which each is a whole number of at least 0"),
    ("retrain", {"retrain__seeds": [7]}, "artifacts/controls.json: full has no seed 7 of retrain.seeds in params.yaml"),
    ("retrain", {"retrain__patience": 0}, "retrain: patience must be a whole number of at least 1 or null, however 0"),
    ("retrain", {"retrain__weight_decay": -0.1}, "retrain: weight_decay must be a number of at least 0, however -0.1"),
    ("retrain", {"retrain__nope": 1}, "params.yaml: retrain: no key 'nope'; it has seeds, batch_size, epochs"),
    ("retrain", {"retrain": gone}, "params.yaml has no 'retrain', which stage 'retrain' needs"),
    ("evaluate", {"evaluate__seed": "x"}, "params.yaml: evaluate: seed must be a whole number of at least 0, however"),
    ("evaluate", {"retrain__seeds": [0, 7]}, "no artifacts/models/searched/seed-7/allocation.json; run `dvc repro`"),
    ("evaluate", {"backbone__name": "fm"}, "searched/seed-0/model.safetensors: does not hold the model that params"),
    ("evaluate", {"dim": 16}, "searched/seed-0/model.safetensors: does not hold the model that params.yaml"),
]


@pytest.mark.parametrize(("stage", "changes", "named"), WRONG_PARAMS, ids=[f"{s} {c}" for s, c, _ in WRONG_PARAMS])
def test_wrong_parameters_are_refused_by_value_place_and_remedy(
    spoilable: Project, stage: str, changes: dict[str, Any], named: str
) -> None:
    with unharmed(spoilable):
        assert named in spoilable.give(**changes).error(stage)


def test_a_number_may_be_written_as_dvc_writes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "params.yaml").write_text("{a: 1e-05, b: -2E+3, c: 1.5e-3, d: '1e-05', e: 1e, f: 3, g: 0.5}")
    monkeypatch.chdir(tmp_path)
    read = _stage.all_params()
    assert read == {"a": 1e-5, "b": -2000.0, "c": 0.0015, "d": "1e-05", "e": "1e", "f": 3, "g": 0.5}


def test_parameters_that_are_no_yaml_are_refused_in_one_line(spoilable: Project) -> None:
    for text, named in (("dim: [1\nsearch: 2\n", "params.yaml is no YAML: "), ("", "params.yaml must be a mapping")):
        with unharmed(spoilable):
            (spoilable.folder / "params.yaml").write_text(text)
            assert named in spoilable.error("search")


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


@pytest.mark.parametrize(("stage", "name"), INPUTS)
def test_a_stage_before_its_turn_says_what_is_missing(spoilable: Project, stage: str, name: str) -> None:
    file = spoilable.folder / "artifacts" / name
    held = file.read_bytes()
    file.unlink()
    try:
        with unharmed(spoilable):
            assert f"there is no artifacts/{name}; run `dvc repro`" in spoilable.error(stage)
    finally:
        file.write_bytes(held)


@pytest.mark.parametrize(("stage", "name"), INPUTS)
def test_a_truncated_input_is_refused_by_its_name_with_a_remedy(spoilable: Project, stage: str, name: str) -> None:
    file = spoilable.folder / "artifacts" / name
    held = file.read_bytes()
    file.write_bytes(held[: len(held) // 2])
    try:
        with unharmed(spoilable):
            message = spoilable.error(stage)
        assert f"artifacts/{name}: " in message and "again" in message
    finally:
        file.write_bytes(held)


@pytest.mark.parametrize(
    ("name", "edit", "named"),
    [
        ("allocation.json", {"dims": {"usr": 4}}, "dims are given for ['usr'], which the schema does not have"),
        ("allocation.json", {"dims": {"user": 99}}, "dims must lie between 1 and dim=8, however: {'user': 99}"),
        ("allocation.json", {"dims": {"user": "8"}}, "dims must be whole numbers from 0"),
        ("allocation.json", {"method": "nope"}, "no 'nope' in pipeline/methods; there are "),
        ("allocation.json", {"dim": 4}, "artifacts/allocation.json: an allocation has the keys ['method', 'dims'"),
    ],
)
def test_an_allocation_edited_by_hand_is_checked(
    spoilable: Project, name: str, edit: dict[str, Any], named: str
) -> None:
    file = spoilable.folder / "artifacts" / name
    held = file.read_bytes()
    record = json.loads(held)
    for key, value in edit.items():
        record[key] = record[key] | value if isinstance(value, dict) else value
    file.write_text(json.dumps(record))
    try:
        with unharmed(spoilable):
            assert named in spoilable.error("retrain")
    finally:
        file.write_bytes(held)


def test_scores_of_other_fields_are_refused(spoilable: Project, table: Project) -> None:
    file = spoilable.folder / "artifacts/encoded/schema.json"
    held = file.read_bytes()
    shutil.copy(table.folder / "artifacts/encoded/schema.json", file)
    try:
        with unharmed(spoilable):
            assert "artifacts/search/scores.json: is of other fields than artifacts/enc" in spoilable.error("derive")
    finally:
        file.write_bytes(held)
