"""What is exported answers as the model does, wherever it is loaded; what cannot be exported says why."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from pipeline.data.encoded import Encoded
from pipeline.experiment import saved
from pipeline.experiment.experiment import Experiment, suitable
from pipeline.experiment.saved import read
from pipeline.models.model import Model
from pipeline.scoring.export import export
from pipeline.scoring.files import score_file
from pipeline.scoring.graph import Graph
from pipeline.scoring.scorer import Scorer
from pipeline.serving.served import Served
from pipeline.tracking.place import meeting_mlflow
from pipeline.workflow.params import Params
from pipeline.workflow.plug import plug
from stages import export as stage
from tests.contracts import METHODS, SCHEMA, draw_ids, served
from tests.project import Project
from tests.scoring.conftest import lines, pruned, searched
from tests.serving.test_packed import BAGS, MIXED, PLAIN, draw, trained


def answers(module: nn.Module, ids: Tensor) -> Tensor:
    with torch.no_grad():
        answered: Tensor = module(ids)
    return answered


@pytest.mark.parametrize("backbone", suitable(interactions=False))
def test_a_graph_answers_as_the_model_for_every_backbone(backbone: str) -> None:
    dropped: Mapping[str, int] = {**MIXED, "age": 0}
    for schema in (PLAIN, BAGS):
        for dims in (MIXED, dropped):
            model, ids = trained(schema, dims, backbone), draw(schema, 50)
            expected = answers(model, ids).sigmoid()
            torch.testing.assert_close(answers(Graph(model, torch.sigmoid), ids.long()), expected, rtol=1e-5, atol=1e-6)


def test_a_graph_answers_as_the_model_for_every_method() -> None:
    kept_tables = set()
    for name in METHODS:
        embedding, kept = served(name)
        torch.manual_seed(0)
        model, ids = Model(SCHEMA, embedding, plug("backbones", "ipnn").Backbone, kept=kept).eval(), draw_ids()
        graph = Graph(model, torch.sigmoid)
        expected = answers(model, ids).sigmoid()
        torch.testing.assert_close(answers(graph, ids.long()), expected, rtol=1e-5, atol=1e-6)
        if graph.keeps_tables:
            kept_tables.add(name)
            stored = sum(tensor.numel() for key, tensor in embedding.state_dict().items())
            assert graph.table_bytes <= 4 * stored + 8 * len(kept) * 64
    assert {"full", "uniform", "random", "autodim", "mde"} <= kept_tables and "coded" not in kept_tables


def test_a_graph_of_coded_tables_holds_their_first_order_weights(coded: Project) -> None:
    model, _, about = read(searched(coded))
    assert model.split  # DeepFM's, which are coded with the vectors
    ids = draw(about.schema, 50)
    graph = Graph(model, torch.sigmoid)
    torch.testing.assert_close(answers(graph, ids.long()), answers(model, ids).sigmoid(), rtol=1e-5, atol=1e-6)


def test_full_tables_are_coded_for_the_export_as_the_curve_of_the_report_codes_them(
    finished: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = finished.read("report.json")
    point = report["curve"]["points"][-2]
    folder = finished.folder / "artifacts/models/full/seed-1"
    with finished.inside():
        monkeypatch.setattr(
            sys, "argv", ["export", str(folder), str(tmp_path / "model"), "--budget", str(point["share"])]
        )
        load_file, loaded = saved.load_file, []

        def noted(file: Path) -> dict[str, Tensor]:
            loaded.append(file)
            return load_file(file)

        monkeypatch.setattr(saved, "load_file", noted)
        stage.run()
        assert loaded == [folder / "model.safetensors"]
        experiment = Experiment(Params.load(), Encoded.load("artifacts/encoded"))
        model = Served.load(tmp_path / "model/model.safetensors")
        test = experiment.data.split("test")
        auc = experiment.task.measure(experiment.task.predict(model, test), test)["auc"]
        assert auc == pytest.approx(point["test"]["values"][report["seeds"].index(1)], abs=2e-4)  # two pairs of rows
        for place, budget, message in (
            (folder, 0.0001, "bytes are too few, the least is"),
            (folder, 7.5, "a budget must be a whole number of bytes above 1, or a share"),
            (
                finished.folder / "artifacts/models/searched/seed-1",
                0.5,
                "tables must all have the dimension 8, got .*; give a model of artifacts/models/full",
            ),
        ):
            with pytest.raises(ValueError, match=message):
                export(place, tmp_path / "other", "served", budget=budget, experiment=lambda: experiment)
        with pytest.raises(ValueError, match="a budget is for coded tables, not for the form trained"):
            export(folder, tmp_path / "other", "trained", budget=0.5)
    assert "of them for the tables" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_pt2_file_takes_a_batch_of_any_size(project: Project, tmp_path: Path) -> None:
    said = export(searched(project), tmp_path / "pt2", "pt2")
    assert ("written out in float32" in said) == (project.read("allocation.json")["method"] == "coded")
    loaded = torch.export.load(tmp_path / "pt2/model.pt2").module()
    check_answers(project, lambda ids: loaded(ids).detach())


def test_an_onnx_file_takes_a_batch_of_any_size(project: Project, tmp_path: Path) -> None:
    import onnxruntime as runtime  # not at the top: it takes a second

    export(searched(project), tmp_path / "onnx", "onnx")
    session = runtime.InferenceSession(tmp_path / "onnx/model.onnx")
    assert [output.name for output in session.get_outputs()] == ["probability"]
    check_answers(project, lambda ids: torch.from_numpy(session.run(None, {"ids": ids.numpy()})[0]))


def check_answers(project: Project, answer: Callable[[Tensor], Tensor]) -> None:
    model, _, about = read(searched(project))
    for rows in (1, 2, 100):
        ids = draw(about.schema, rows)
        torch.testing.assert_close(answer(ids.long()), answers(model, ids).sigmoid(), rtol=0, atol=1e-6)


def test_onnx_without_its_packages_names_the_extra(
    mixed: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        ValueError, match=r"onnx needs the package onnxruntime; install it, e.g. with pip install -r requirements.lock"
    ):
        export(searched(mixed), tmp_path / "onnx", "onnx")
    assert not list(tmp_path.iterdir())


def test_an_mlflow_model_answers_raw_rows_and_is_registered(
    mixed: Project, migrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(migrated, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    for version in (1, 2):
        command = ["export", str(searched(mixed)), f"made-{version}", "--format", "mlflow", "--register", "clicks"]
        monkeypatch.setattr(sys, "argv", command)
        stage.run()
        assert f"export: version {version} of clicks, models:/clicks/{version}" in capsys.readouterr().out
    (tmp_path / "rows.csv").write_text("\n".join(lines()) + "\n")
    score_file(Scorer.load(searched(mixed)), tmp_path / "rows.csv", tmp_path / "scores.parquet")
    expected = pd.read_parquet("scores.parquet")
    rows = pd.read_csv("rows.csv", sep=";", na_values=["", "?"], keep_default_na=False, dtype={"item": str})
    with meeting_mlflow():
        import mlflow

        mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
        version = mlflow.MlflowClient().get_model_version("clicks", "2")
        assert version.description.startswith(f"Exported from {searched(mixed)} to made-2: an MLflow model of the form")
        for place in ("made-1", "models:/clicks/2"):
            loaded = mlflow.pyfunc.load_model(place)
            assert loaded.metadata.get_input_schema().input_names() == ["user", "item", "price", "share", "tags"]
            assert loaded.predict(loaded.input_example)["probability"].between(0, 1).all()
            pd.testing.assert_frame_equal(loaded.predict(rows), expected, check_dtype=False, rtol=0, atol=1e-6)
            with pytest.raises(mlflow.MlflowException, match="share"):
                loaded.predict(rows.drop(columns="share"))


def test_a_model_without_a_served_form_is_exported_otherwise(tmp_path: Path) -> None:
    made = tmp_path / "pq"
    made.mkdir()
    folder = searched(pruned(made))
    with pytest.raises(
        ValueError, match=r"a model of method magnitude has no served form .* trained, onnx, pt2 or mlflow"
    ):
        export(folder, tmp_path / "served", "served")
    assert export(folder, tmp_path / "mlflow", "mlflow").startswith(
        f"{tmp_path}/mlflow: an MLflow model of the form trained"
    )
    assert "the tables of method magnitude are written out" in export(folder, tmp_path / "pt2", "pt2")


def test_a_backbone_that_cannot_be_traced_is_named(
    mixed: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = plug("backbones", "deepfm").Backbone
    forward = backbone.forward
    monkeypatch.setattr(backbone, "forward", lambda self, *given: forward(self, *given) * float(given[1].sum() > 0))
    with pytest.raises(
        ValueError, match=r"cannot trace method autodim with backbone deepfm .*; export it as trained or mlflow"
    ):
        export(searched(mixed), tmp_path / "pt2", "pt2")
    monkeypatch.setattr(
        backbone, "forward", lambda self, occ, embedded: forward(self, occ, embedded) + occ.rows.float().mean()
    )
    with pytest.raises(ValueError, match="differs from the model by"):
        export(searched(mixed), tmp_path / "pt2", "pt2")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_and_an_export_of_an_export_are_refused(mixed: Project, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is there already"):
        export(searched(mixed), tmp_path, "served")
    with pytest.raises(ValueError, match="int8 tables exist only in the forms served and mlflow, got pt2"):
        export(searched(mixed), tmp_path / "pt2", "pt2", int8=True)
    export(searched(mixed), tmp_path / "served", "served")
    with pytest.raises(ValueError, match="only a trained model is exported, and this one is in the form served"):
        export(tmp_path / "served", tmp_path / "again", "pt2")
    export(searched(mixed), tmp_path / "trained", "trained")
    export(tmp_path / "trained", tmp_path / "again", "served")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "served/model.safetensors").read_bytes()
