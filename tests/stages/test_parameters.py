"""What users get wrong in params.yaml, and which parameters a stage may read."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.workflow.params import Params
from pipeline.workflow.validation import Section
from pipeline.workflow.yaml_values import read_yaml
from tests.project import ROOT, Project, gone
from tests.stages.checks import unharmed

DVC = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
NUMBER = "must be a whole number of at least"
WRONG_PARAMS: list[tuple[str, dict[str, Any], str]] = [
    ("ingest", {"dataset__name": "nope"}, "dataset.name: there is no data set 'nope'; there are avazu, criteo,"),
    ("ingest", {"dataset__path": None}, "dataset.path must be a text, got null"),
    ("ingest", {"dataset": "synthetic"}, "dataset must be a mapping with the keys name, options, path, got 'synth"),
    ("ingest", {"dataset__sample": 1}, "dataset: there is no 'sample'; valid are name, options, path"),
    ("ingest", {"dataset__options": {"rows": "many"}}, f"dataset.options: rows {NUMBER} 1, got 'many'"),
    ("encode", {"encode": None}, "encode must be a mapping with the keys split, min_count, numeric"),
    ("encode", {"encode__min_count": True}, f"encode.min_count {NUMBER} 1 or null, got true"),
    ("encode", {"encode__split": 0.8}, "encode.split must be a mapping with the keys by, train, arch, val, test, got"),
    ("search", {"dim": 4}, "candidates.planted goes up to 8, and dim is 4; raise dim, or choose another set in"),
    ("search", {"dim": "8"}, f"dim {NUMBER} 1 and at most 4096, got '8'; write it without quotes"),
    ("search", {"candidates__planted": [1, 2, 2]}, "candidates.planted must be at least one number, and no number tw"),
    ("search", {"candidates__planted": []}, "candidates.planted must be at least one number, and no number twice, g"),
    ("search", {"candidates__planted": [-1, 2]}, f"candidates.planted[0] {NUMBER} 0 and at most 4096, got -1"),
    ("search", {"search__candidates": "nope"}, "search.candidates: there is no set 'nope'; there are even, paper"),
    ("search", {"search__candidates": {"user": "nope"}}, "there is no set 'nope' for field 'user'; there are even,"),
    ("search", {"search__candidates": {"default": "even", "user": "paper"}}, "candidates.paper goes up to 32, and dim"),
    ("search", {"search__candidates": {"user": "planted"}}, "has no set for field 'item' and no default; add one"),
    ("search", {"search__candidates": {"default": "planted", "usr": "even"}}, "no field ['usr'] in the schema; there"),
    ("search", {"search__epochs": -1}, f"search.epochs {NUMBER} 1, got -1"),
    ("search", {"search__epochs": gone}, "search: 'epochs' is missing"),
    ("search", {"search__batch_size": 0}, f"search.batch_size {NUMBER} 3, got 0"),
    ("search", {"search__lr": "0.001"}, "search.lr must be a number of at least 0, got '0.001'; write it without qu"),
    ("search", {"search__lr": float("nan")}, "search.lr must be a number of at least 0, got nan"),
    ("search", {"search__patience": 3}, "search: there is no 'patience'; valid are batch_size, epochs, lr,"),
    ("search", {"search__schedule": "linear"}, "search: there is no 'schedule'; valid are batch_size, epochs, lr,"),
    ("search", {"search__architecture": {"f": 10}}, "search.architecture: there is no 'f'; valid are lr, every,"),
    ("search", {"search__architecture": {"order": 3}}, "search.architecture.order must be one of 1, 2, got 3"),
    (
        "search",
        {"search__architecture": {"stable_steps": -1}},
        "must be a number above 0 and at most 1 or null, got -1",
    ),
    ("search", {"backbone__name": "nope"}, "backbone.name: there is no backbone 'nope'; there are autoint, dcn_v2,"),
    ("search", {"backbone__options": {"layers": 2}}, "backbone.options: there is no 'layers'; valid are hidden, drop"),
    ("search", {"backbone__options": {"hidden": [0]}}, f"backbone.options: hidden[0] {NUMBER} 1, got 0"),
    ("search", {"method__options": {"lr": 0.1}}, "method.options.lr must be a mapping of names to values or null"),
    ("search", {"method__options": {"nope": None}}, "method.options: there is no method 'nope'; there are alpt,"),
    ("search", {"method__options__autodim": {"tau": 1.0}}, "method.options.autodim: there is no 'tau'; valid are temp"),
    (
        "search",
        {"method__options__autodim": {"temperature": {"end": 1.0}}},
        "method.options.autodim: temperature: there is no 'end'; valid are start, rate, floor, per",
    ),
    ("search", {"method__options__autodim": {"sharing": "none"}}, "sharing must be one of shared, separate, got 'non"),
    ("search", {"task__name": "ctrr"}, "task.name: there is no task 'ctrr' (did you mean 'ctr'?); there are ctr"),
    (
        "search",
        {"evaluation": {"resamples": 0}},
        "there is no 'evaluation' (did you mean 'evaluate'?); valid are dataset, encode,",
    ),
    ("search", {"candidates__planted": [0]}, "candidates.planted has only 0, which drops every field; add a dim above"),
    ("search", {"dim": 10**9}, f"dim {NUMBER} 1 and at most 4096, got 1000000000"),
    ("search", {"search__seed": 2**64}, f"search.seed {NUMBER} 0 and below 4294967296, got 18446744073709551616"),
    ("encode", {"encode__max_bag": 10**9}, f"encode.max_bag {NUMBER} 1 and at most 4096 or null, got 1000000000"),
    ("search", {"search__batch_size": 5000}, "search.batch_size must be at most 1,793, the rows of train, got 5,000;"),
    ("search", {"retrain__batch_size": 5000}, "retrain.batch_size must be at most 2,025, the rows of train and arch, "),
    ("retrain", {"retrain__batch_size": 5000}, "retrain.batch_size must be at most 2,025, the rows of train and arch,"),
    ("search", {"derive__budget": 2}, "params.yaml: derive.budget is 2: no choice costs 2 bytes or less: the least"),
    (
        "search",
        {"search__architecture": {"every": 99}},
        "search.architecture.every must be at most 18, the steps of the search, got 99; lower it, or train for more",
    ),
    ("derive", {"derive__budget": "25%"}, "or a share of the full tables' bytes"),
    ("derive", {"derive__budget": 1.5}, "derive.budget must be a whole number of bytes above 1, or a share"),
    ("derive", {"derive__bytes": 1000}, "derive: there is no 'bytes'; valid are budget"),
    ("derive", {"retrain__seeds": []}, "retrain.seeds must be at least one number, and no number twice, got []"),
    ("retrain", {"retrain__seeds": [3, 3]}, "retrain.seeds must be at least one number, and no number twice, got [3"),
    (
        "retrain",
        {"retrain__seeds": 3},
        "retrain.seeds must be a list of whole numbers of at least 0 and below 4294967296",
    ),
    ("retrain", {"retrain__seeds": [0, "1"]}, f"retrain.seeds[1] {NUMBER} 0 and below 4294967296, got '1'; write it"),
    ("retrain", {"retrain__seeds": [7]}, "artifacts/controls.json: full has no seed 7 of retrain.seeds in params.yaml"),
    ("retrain", {"retrain__patience": 0}, f"retrain.patience {NUMBER} 1 or null, got 0"),
    ("retrain", {"retrain__schedule": "cosine"}, "retrain.schedule must be one of constant, linear, got 'cosine'"),
    ("retrain", {"retrain__weight_decay": -0.1}, "retrain.weight_decay must be a number of at least 0, got -0.1"),
    ("retrain", {"retrain__adagrad": 0.0}, "retrain.adagrad must be a number above 0 or null, got 0.0"),
    ("retrain", {"retrain__tables": "torch"}, "retrain.tables must be one of local, torchrec, got 'torch'"),
    (
        "retrain",
        {"retrain__adagrad": 0.05, "retrain__weight_decay": 0.1},
        "with adagrad, weight_decay must be 0, got 0.1: only Adam has it here",
    ),
    (
        "retrain",
        {"retrain__tables": "torchrec"},
        "with tables torchrec, adagrad must be a learning rate, e.g. 0.05, got null: the kernels for tables on",
    ),
    (
        "retrain",
        {"retrain__tables": "torchrec", "retrain__adagrad": 0.05, "retrain__finetune": {"epochs": 1, "lr": 0.003}},
        "with tables torchrec, finetune must be null: it trains a model that one process holds",
    ),
    ("retrain", {"retrain__nope": 1}, "retrain: there is no 'nope'; valid are batch_size, epochs, lr,"),
    ("retrain", {"retrain": gone}, "params.yaml: 'retrain' is missing"),
    ("evaluate", {"retrain__seeds": [0, 7]}, "there is no artifacts/models/searched/seed-7; run `dvc repro`"),
    (
        "evaluate",
        {"backbone__name": "fm"},
        "searched/seed-0/model.json: is of a model with another backbone than that",
    ),
    ("evaluate", {"dim": 16}, "searched/seed-0/model.json: is of a model with another dim than that of this exp"),
]
NEED_DATA = (
    "the rows of",
    "the steps of",
    "costs 2 bytes",
    "in the schema",
    "has no set for field",
    "has no seed",
    "artifacts/",
    "searched/",
)  # and earlier stages


@pytest.mark.parametrize(("stage", "changes", "named"), WRONG_PARAMS, ids=[f"{s} {c}" for s, c, _ in WRONG_PARAMS])
def test_wrong_parameters_are_refused_by_value_place_and_remedy(
    spoilable: Project, stage: str, changes: dict[str, Any], named: str
) -> None:
    with unharmed(spoilable):
        spoilable.give(**changes)
        assert named in spoilable.error(stage)
        if not any(word in named for word in NEED_DATA):
            assert named in spoilable.error("check")  # before anything has run


def test_all_faults_of_the_parameters_are_told_at_once(spoilable: Project) -> None:
    with unharmed(spoilable):
        message = spoilable.give(retrain__epochs=0, search__lr="x", nope=1, method__options__pep={"a": 1}).error(
            "check"
        )
    for named in ("retrain.epochs must be", "search.lr must be", "there is no 'nope'"):
        assert named in message


def test_a_wrong_name_of_any_plug_is_refused_before_the_first_stage(spoilable: Project) -> None:
    with unharmed(spoilable):
        message = spoilable.give(method__name="autodimm").error("check")
    assert message.startswith("params.yaml: method.name: there is no method 'autodimm' (did you mean 'autodim'?); ")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"search__cuda_graph": True}, "search.cuda_graph is true, and batches for models that rank items have many"),
        ({"retrain__cuda_graph": True}, "retrain.cuda_graph is true, and batches for models that rank items have many"),
        (
            {"search__devices": 2},
            "search.devices is 2, and several processes cannot share a model that ranks items; se",
        ),
        ({"retrain__devices": 2, "retrain__workers": 1}, "retrain.devices is 2, and several processes cannot share a"),
        (
            {"retrain__tables": "torchrec", "retrain__adagrad": 0.05, "retrain__weight_decay": 0.0},
            "retrain.tables is torchrec, and several processes cannot share a model that ranks items; set it to",
        ),
    ],
)
def test_what_retrieval_cannot_do_is_refused_before_the_first_stage(
    spoilable: Project, changes: dict[str, Any], told: str
) -> None:
    retrieval = {"task": {"name": "retrieval"}, "backbone": {"name": "mf"}}
    with unharmed(spoilable):
        assert spoilable.give(**retrieval, **changes).error("check").startswith(f"params.yaml: {told}")


def test_a_path_without_data_is_refused_before_the_first_stage(spoilable: Project) -> None:
    with unharmed(spoilable):
        message = spoilable.give(dataset__path="nowhere/clicks.csv").error("check")
    assert message.startswith("params.yaml: dataset.path: there is no 'nowhere/clicks.csv' in ")


def test_a_pipe_or_a_device_as_the_data_is_refused_before_anything_reads_it(spoilable: Project) -> None:
    os.mkfifo(spoilable.folder / "pipe")
    try:
        for path in ("pipe", "/dev/zero"):
            with unharmed(spoilable):
                message = spoilable.give(dataset__path=path).error("check")
            assert "dataset.path: there is no file or folder, but a pipe or a device, at " in message
    finally:
        (spoilable.folder / "pipe").unlink()


def test_parameters_that_are_no_yaml_are_refused_in_one_line(spoilable: Project) -> None:
    for text, named in (("dim: [1\nsearch: 2\n", "params.yaml is not YAML: "), ("", "params.yaml must be a mapping")):
        with unharmed(spoilable):
            (spoilable.folder / "params.yaml").write_text(text)
            assert named in spoilable.error("search")


def test_a_number_may_be_written_as_dvc_writes_it(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("{a: 1e-05, b: -2E+3, c: 1.5e-3, d: '1e-05', e: 1e, f: 3, g: 0.5}")
    read = read_yaml(tmp_path / "params.yaml")
    assert read == {"a": 1e-5, "b": -2000.0, "c": 0.0015, "d": "1e-05", "e": "1e", "f": 3, "g": 0.5}


# --- what dvc.yaml declares


@pytest.mark.parametrize("stage", [stage for stage in DVC if stage != "check"])
def test_a_stage_reads_all_parameters_and_only_the_files_that_dvc_yaml_declares(
    finished: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    project = Project(tmp_path)
    shutil.copy(finished.folder / "params.yaml", tmp_path / "params.yaml")
    for dep in DVC[stage]["deps"]:
        source = finished.folder / dep
        if dep.startswith("artifacts") and source.exists():
            (tmp_path / dep).parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / dep)
    given = set(project.files())
    seen: dict[int, tuple[Section, str]] = {}
    paths = {""}
    get = Section.__getattribute__

    def watched(section: Section, name: str) -> Any:
        value = get(section, name)
        if name in type(section).model_fields and (isinstance(section, Params) or id(section) in seen):
            path = name if isinstance(section, Params) else f"{seen[id(section)][1]}.{name}"
            paths.add(path)
            if isinstance(value, Section):
                seen[id(value)] = value, path
        return value

    monkeypatch.setattr(Section, "__getattribute__", watched)
    project.run(stage)
    monkeypatch.undo()

    values = yaml.safe_load((tmp_path / "params.yaml").read_text())
    for key in DVC[stage]["params"]:
        whole = key in ("candidates", "encode")  # names that users choose; settings that depend on each other
        leaves = values[key] if isinstance(values.get(key), dict) and not whole else []
        assert not {key, *(f"{key}.{leaf}" for leaf in leaves)} - paths, f"{stage} never reads what dvc.yaml declares"
    outs = [Path(out) for out in [*DVC[stage]["outs"], *DVC[stage].get("metrics", [])]]
    made = {Path(name) for name in project.files()} - {Path(name) for name in given}
    assert all(any(path.is_relative_to(out) for out in outs) for path in made)
    assert all((tmp_path / out).exists() for out in outs)


def test_a_stage_gets_no_parameter_that_dvc_yaml_does_not_declare(planted: Project) -> None:
    with planted.inside():
        for stage, record in DVC.items():
            given = Params.of_stage(stage)
            assert given.model_fields_set == {key.split(".")[0] for key in record["params"]}
        seeds = Params.of_stage("derive").retrain
        assert seeds.seeds == (0, 1)
        with pytest.raises(ValueError, match=r"may not read 'epochs' of Retrain: dvc.yaml does not declare it"):
            seeds.epochs  # noqa: B018


def test_what_the_check_writes_never_changes(planted: Project, tmp_path: Path) -> None:
    project = planted.copy(tmp_path).run("check")
    before = project.files()["artifacts/checked.json"]
    assert json.loads(before)
    assert project.give(retrain__epochs=7).run("check").files()["artifacts/checked.json"] == before
