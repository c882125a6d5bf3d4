"""Writes a trained model to a folder that stands alone, in the form that its user needs."""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.budget import in_bytes
from pipeline.data.schema import PADDING, Schema
from pipeline.embeddings.coded import CodedTables
from pipeline.embeddings.cost import cost, full_tables
from pipeline.experiment.code import Coder
from pipeline.experiment.experiment import Experiment
from pipeline.experiment.saved import (
    ALLOCATION,
    ENCODING,
    HISTORY,
    TRAINED,
    WEIGHTS,
    About,
    copy_encoding,
    encoding_of,
    read,
)
from pipeline.models.model import Model
from pipeline.models.retriever import AnyModel, Retriever
from pipeline.scoring.graph import Graph
from pipeline.scoring.scorer import SERVED, Scorer
from pipeline.serving.served import Served
from pipeline.tracking.pyfunc import write_pyfunc
from pipeline.training.task import Task
from pipeline.workflow.code import ROOT
from pipeline.workflow.outputs import whole

CHECKED = (1, 2, 257)  # rows of the batches on which an exported graph is compared with the model
TOLERANCE = 1e-5  # of its answers
LOADER = "pipeline.scoring.pyfunc"
EXTRA = "pip install -r requirements.lock"


@dataclass(frozen=True)
class Opened:
    """A trained model with all that its export may need.

    Args:
        folder: of the model.
        encoding: folder of its encoding.
        int8: whether plain tables are rounded to int8 in the served form.
        coded: bytes of the tables, if they were coded for the export.
    """

    folder: Path
    model: AnyModel
    allocation: Allocation
    about: About
    task: Task
    encoding: Path
    int8: bool
    coded: int | None = None

    @property
    def of_rows(self) -> Model:
        """The model, which is none for retrieval."""
        assert isinstance(self.model, Model)
        return self.model

    @classmethod
    def of(cls, folder: Path, int8: bool = False) -> Opened:
        about = About.load(folder)
        if about.form != TRAINED:
            raise ValueError(f"{folder}: only a trained model is exported, and this one is in the form {about.form}")
        model, allocation, _ = read(folder)
        return cls(folder, model, allocation, about, about.resolved_task(), encoding_of(folder, about), int8)

    def within(self, budget: float, experiment: Experiment) -> Opened:
        """The same model with coded tables, as the curve of the report has it.

        Args:
            budget: as `pipeline.allocation.budget.in_bytes` takes it.
            experiment: in which the model was trained; the codes depend on its training rows.

        Raises:
            ValueError: if the model is of another experiment, has no full tables, or the budget is too small.
        """
        self.about.check_experiment(self.folder, experiment)
        limit = in_bytes(budget, full_tables(experiment.schema, experiment.dim).bytes)
        try:
            coder = Coder(experiment, self.model)
        except ValueError as error:
            raise ValueError(f"{self.folder}: {error}; give a model of artifacts/models/full") from error
        coded = coder.coded(limit)
        assert isinstance(coded, Model) and isinstance(coded.embedding, CodedTables)
        return replace(self, model=coded, coded=cost(coded.embedding.packed()).bytes)


def export(
    folder: Path,
    out: Path,
    form: str,
    int8: bool = False,
    budget: float | None = None,
    experiment: Callable[[], Experiment] | None = None,
) -> str:
    """Write a model to a new folder, whole or not at all.

    Args:
        folder: of a model that `retrain` wrote, or that was exported in the form `trained`.
        out: the folder to write; it must not exist.
        form: key of `FORMS`.
        int8: round plain tables to int8; only in the forms `served` and `mlflow`.
        budget: code full tables within this budget, see `Opened.within`; not in the form `trained`.
        experiment: opens the one in which the model was trained; needed for a budget.

    Returns:
        What was written, in words.

    Raises:
        ValueError: if the model has no such form, the export gives other answers than the model, or a package is
            missing.
    """
    if out.exists():
        raise ValueError(f"{out}: is there already; give the name of a new folder, or remove it")
    if int8 and form not in ("served", "mlflow"):
        raise ValueError(f"int8 tables exist only in the forms served and mlflow, got {form}")
    if budget is not None and (int8 or form == TRAINED):
        raise ValueError(f"a budget is for coded tables, not for {'int8' if int8 else f'the form {form}'}; drop one")
    opened = Opened.of(folder, int8)
    if form != TRAINED and isinstance(opened.model, Retriever):
        raise ValueError(
            f"{folder}: a model for retrieval is exported only as trained, got {form}; use --format trained"
        )
    if budget is not None:
        assert experiment is not None
        opened = opened.within(budget, experiment())
    with whole(out) as draft:
        draft.mkdir()
        return f"{out}: {FORMS[form](opened, draft)}"


def _trained(opened: Opened, out: Path) -> str:
    for name in (WEIGHTS, ALLOCATION, HISTORY):
        shutil.copyfile(opened.folder / name, out / name)
    _finish(opened, out, TRAINED)
    return _size(out / WEIGHTS)


def _served(opened: Opened, out: Path) -> str:
    try:
        served = Served.of(opened.of_rows, opened.int8)
    except TypeError as error:
        raise ValueError(
            f"{opened.folder}: a model of method {opened.allocation.method} has no served form ({error}); export it as "
            "trained, onnx, pt2 or mlflow"
        ) from error
    served.save(out / WEIGHTS)
    _finish(opened, out, SERVED)
    tables = "" if opened.coded is None else f", {opened.coded:,} of them for the tables"
    return f"{_size(out / WEIGHTS)}{tables}"


def _pt2(opened: Opened, out: Path) -> str:
    graph, program = _traced(opened)
    file = out / "model.pt2"
    with _quiet():
        torch.export.save(program, file)
        loaded = torch.export.load(file).module()
    differs = _checked(opened, lambda ids: loaded(ids))
    _finish(opened, out, "pt2")
    return _of_graph(opened, graph, file, differs)


def _onnx(opened: Opened, out: Path) -> str:
    try:
        import onnxruntime  # of the extra [export]
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(f"the form onnx needs the package {error.name}; install it, e.g. with {EXTRA}") from error
    graph, program = _traced(opened)
    file = out / "model.onnx"
    with _quiet():
        answer = opened.task.answer_name
        exported = torch.onnx.export(program, dynamo=True, verbose=False, input_names=["ids"], output_names=[answer])
        assert exported is not None
        exported.save(file)
        session = onnxruntime.InferenceSession(file)
    differs = _checked(opened, lambda ids: torch.from_numpy(session.run(None, {"ids": ids.numpy()})[0]))
    _finish(opened, out, "onnx")
    return _of_graph(opened, graph, file, differs)


def _mlflow(opened: Opened, out: Path) -> str:
    with tempfile.TemporaryDirectory() as temporary:
        bundle = Path(temporary) / "model"
        bundle.mkdir()
        try:
            written, form = _served(opened, bundle), SERVED
        except ValueError:
            if opened.int8:
                raise
            written, form = _trained(opened, bundle), TRAINED
        write_pyfunc(out, LOADER, bundle, ROOT / "pipeline", Scorer.load(bundle).example(), opened.task.answer_columns)
    return f"an MLflow model of the form {form}, {written}"


FORMS: dict[str, Callable[[Opened, Path], str]] = {
    "served": _served,
    "trained": _trained,
    "onnx": _onnx,
    "pt2": _pt2,
    "mlflow": _mlflow,
}


def _finish(opened: Opened, out: Path, form: str) -> None:
    """Add what makes the folder stand alone."""
    copy_encoding(opened.encoding, out / ENCODING)
    replace(opened.about, form=form).save(out)


def _traced(opened: Opened) -> tuple[Graph, torch.export.ExportedProgram]:
    graph = Graph(opened.of_rows, opened.task.answer)
    rows = torch.export.Dim("rows", min=1)
    try:
        with _quiet(), torch.no_grad():
            ids = draw_ids(opened.about.schema, 3)
            return graph, torch.export.export(graph, (ids,), dynamic_shapes={"ids": {0: rows}})
    except Exception as error:  # what torch.export raises has no common base class
        why = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{opened.folder}: torch.export cannot trace method {opened.allocation.method} with backbone "
            f"{opened.about.backbone.name} ({type(error).__name__}: {why}); export it as trained or mlflow"
        ) from error


def _checked(opened: Opened, answers: Callable[[Tensor], Tensor]) -> float:
    """The largest difference between the answers of an exported graph and of the model, on random ids.

    Raises:
        ValueError: if it is above `TOLERANCE`.
    """
    largest = 0.0
    for seed, rows in enumerate(CHECKED):
        ids = draw_ids(opened.about.schema, rows, seed)
        with torch.no_grad():
            expected = opened.task.answer(opened.model(ids.int()))
            largest = max(largest, float((answers(ids) - expected).abs().max() / expected.abs().max().clamp(min=1)))
    if not largest <= TOLERANCE:
        raise ValueError(
            f"{opened.folder}: the exported graph differs from the model by {largest:.1e}, more than {TOLERANCE:.0e}; "
            "export it as trained or mlflow"
        )
    return largest


def draw_ids(schema: Schema, rows: int, seed: int = 0) -> Tensor:
    """(rows, S) int64 random ids; bags have one value or more."""
    rng = np.random.default_rng(seed)
    columns = []
    for field in schema.fields:
        ids = rng.integers(0, field.cardinality, (rows, field.width))
        ids[np.arange(field.width) >= rng.integers(1, field.width + 1, (rows, 1))] = PADDING
        columns.append(ids)
    return torch.from_numpy(np.concatenate(columns, 1))


def _of_graph(opened: Opened, graph: Graph, file: Path, differs: float) -> str:
    size = _size(*file.parent.glob(f"{file.name}*"))  # large weights are in files of their own beside it
    tables = (
        ""
        if graph.keeps_tables
        else (
            f"; the tables of method {opened.allocation.method} are written out in float32, {graph.table_bytes:,} bytes"
        )
    )
    return f"{size}, from the model at most {differs:.0e} away on {sum(CHECKED)} random rows{tables}"


def _size(*files: Path) -> str:
    return f"{sum(file.stat().st_size for file in files):,} bytes of weights"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings and logs of exporters, which speak to their developers."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
