"""Trained models on disk: their weights, allocation and training history, and what it takes to use them anywhere."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline.allocation.allocation import Allocation
from pipeline.data.encoded import SCHEMA_FILE, VOCABULARY_FILE, Encoded
from pipeline.data.interactions import SHARED_FILES
from pipeline.data.schema import Schema
from pipeline.experiment.experiment import Experiment
from pipeline.experiment.method import build
from pipeline.models.model import assemble
from pipeline.models.retriever import AnyModel, Retriever
from pipeline.training.task import Task
from pipeline.workflow.code import version
from pipeline.workflow.outputs import broken, checksum, read_json, whole, write_json
from pipeline.workflow.params import LARGEST_DIM
from pipeline.workflow.plug import check_name, plug
from pipeline.workflow.validation import checked_options

ABOUT, WEIGHTS, ALLOCATION, HISTORY = "model.json", "model.safetensors", "allocation.json", "history.json"
ENCODING = "encoding"  # folder with what `copy_encoding` copies for the models around it
TRAINED = "trained"  # the form that `save` writes
FORMAT = 1  # of model.json and of the files beside it; raise it when older folders can no longer be read

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Named:
    """The name of a plug, and its options as params.yaml had them."""

    name: str
    options: dict[str, Any]


@dataclass(frozen=True)
class About:
    """What a model is, apart from its weights and its allocation: the contents of model.json.

    Args:
        form: `TRAINED`, or how the model was exported.
        task, backbone: the plugs.
        dim: D.
        schema: of the ids, all fields.
        encoding: checksum of the schema.json by which the ids were made.
        version: of the project that wrote it.
        weights: checksum of `WEIGHTS`; None if it is not known.
    """

    form: str
    task: Named
    backbone: Named
    dim: int
    schema: Schema
    encoding: str
    version: str
    weights: str | None = None

    @classmethod
    def of(cls, experiment: Experiment) -> About:
        """A trained model of an experiment."""
        task, backbone = experiment.params.task, experiment.params.backbone
        return cls(
            TRAINED,
            Named(task.name, task.options or {}),
            Named(backbone.name, backbone.options or {}),
            experiment.dim,
            experiment.schema,
            checksum(experiment.data.folder / SCHEMA_FILE),
            version(),
        )

    @classmethod
    def load(cls, folder: Path) -> About:
        """What the folder of a model says about it.

        Raises:
            ValueError: if another version wrote the folder in another form, or it holds no model.
            FileNotFoundError: if there is no such folder.
        """
        folder.stat()
        file = folder / ABOUT
        if not file.is_file():
            why = "it holds no model"
            if (folder / WEIGHTS).is_file():
                why = f"a version before {version()} or an early {version()} wrote it"
            raise ValueError(f"{folder}: has no {ABOUT}: {why}; give the folder of a model that this version wrote")
        record = read_json(file)
        writer = record.get("version", "unknown") if isinstance(record, dict) else "unknown"
        try:
            if record["format"] != FORMAT:
                raise ValueError(f"format {record['format']}")
            about = cls(
                record["form"],
                Named(**record["task"]),
                Named(**record["backbone"]),
                record["dim"],
                Schema.from_dict(record),
                record["encoding"],
                writer,
                record.get("weights"),
            )
            about._check()
            return about
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{file}: version {writer} wrote it, in a form that version {version()} cannot read "
                f"({type(error).__name__}: {error}); train or export the model again with this version"
            ) from error

    def _check(self) -> None:
        """Raise a ValueError if the model cannot be made, except for the options of its backbone."""
        if type(self.dim) is not int or not 1 <= self.dim <= LARGEST_DIM:
            raise ValueError(f"dim must be a whole number from 1 to {LARGEST_DIM:,}, got {self.dim!r}")
        check_name("backbones", self.backbone.name, "backbone")
        self.resolved_task()

    def check_experiment(self, folder: Path, experiment: Experiment) -> None:
        """Raise a ValueError if the model in a folder was trained in another experiment."""
        here = About.of(experiment)
        for part in ("task", "backbone", "dim", "schema", "encoding"):
            if getattr(self, part) != getattr(here, part):
                raise broken(folder / ABOUT, f"is of a model with another {part} than that of this experiment")

    def check_weights(self, folder: Path) -> None:
        """Raise a ValueError if the weights in the folder of the model are not as they were written."""
        if self.weights is not None and checksum(folder / WEIGHTS) != self.weights:
            raise broken(folder / WEIGHTS, f"is not as it was written: its checksum is not that of {ABOUT}")

    def save(self, folder: Path) -> None:
        """Write model.json, to a folder that has its weights, if the form has some in `WEIGHTS`."""
        named = {"task": asdict(self.task), "backbone": asdict(self.backbone)}
        record = {"format": FORMAT, "version": self.version, "form": self.form, **named, "dim": self.dim}
        weights = {"weights": checksum(folder / WEIGHTS)} if (folder / WEIGHTS).is_file() else {}
        write_json(folder / ABOUT, {**record, "encoding": self.encoding, **weights, **self.schema.to_dict()})

    @property
    def ranks(self) -> bool:
        """Whether it is a model for retrieval."""
        return any(field.role for field in self.schema.fields)

    def resolved_task(self) -> Task:
        return Task.of(self.task.name, plug("tasks", self.task.name), self.task.options, f"{ABOUT}: task.options")


def save(
    folder: Path,
    experiment: Experiment,
    model: AnyModel,
    allocation: Allocation,
    history: Sequence[Mapping[str, float]],
) -> None:
    """Write the folder of a trained model, whole or not at all.

    Args:
        folder: to write.
        experiment: in which the model was trained.
        model: with its final weights.
        allocation: of the model.
        history: for every epoch, the weight step and the task's metrics on ``val``.
    """
    with whole(folder) as draft:
        draft.mkdir()
        state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        save_file(state, draft / WEIGHTS)
        allocation.save(draft / ALLOCATION)
        write_json(draft / HISTORY, list(history))
        About.of(experiment).save(draft)


def read(folder: Path) -> tuple[AnyModel, Allocation, About]:
    """A model that `save` wrote, its allocation, and what it is; nothing but the folder decides, and for a model for
    retrieval the users, items and pairs of its encoding.

    Raises:
        ValueError: naming the file that does not fit the others, or that another version wrote.
        FileNotFoundError: if a file is missing.
    """
    about = About.load(folder)
    allocation = _allocation(folder, about.schema)
    backbone = plug("backbones", about.backbone.name).Backbone
    options = checked_options([backbone], about.backbone.options, f"{folder / ABOUT}: backbone.options")
    if not about.ranks:
        with _suiting(folder):
            made: AnyModel = assemble(about.schema, about.dim, allocation, build, backbone, options)
        return _filled(folder, about, made), allocation, about
    shared = Encoded.load(encoding_of(folder, about)).interactions
    assert shared is not None  # its fields have roles
    kept = about.schema.subset(allocation.kept())
    with _suiting(folder):
        embedding = build(kept, about.dim, allocation.of_kept())
    made = Retriever(shared, shared.trained_pairs(), embedding, backbone, options, kept)
    return _filled(folder, about, made), allocation, about


def _allocation(folder: Path, schema: Schema) -> Allocation:
    allocation = Allocation.load(folder / ALLOCATION, schema)
    check_name("methods", allocation.method, f"{folder / ALLOCATION}: method")
    return allocation


@contextlib.contextmanager
def _suiting(folder: Path) -> Iterator[None]:
    """A block that makes the model of a folder from its allocation."""
    try:
        yield
    except (ValueError, TypeError, LookupError, OverflowError) as error:
        why = f"does not suit {ABOUT} ({type(error).__name__}: {error})"
        raise broken(folder / ALLOCATION, why) from error


def _filled(folder: Path, about: About, model: M) -> M:
    """The model with the weights in a folder, in evaluation mode."""
    weights = folder / WEIGHTS
    weights.stat()  # the error of safetensors does not name a missing file
    if not weights.is_file():
        raise broken(weights, "must be a file")
    try:
        state = load_file(weights)
        types = {name: tensor.dtype for name, tensor in model.state_dict().items()}
        if types != {name: tensor.dtype for name, tensor in state.items()}:
            raise RuntimeError("other tensors, or of other types")
        model.load_state_dict(state)
    except (RuntimeError, SafetensorError) as error:
        raise broken(weights, f"does not hold the model that {ABOUT} and {ALLOCATION} describe") from error
    for name, tensor in state.items():
        if not bool(torch.isfinite(tensor).all()):
            raise broken(weights, f"{name} holds numbers that are not finite")
    about.check_weights(folder)
    return model.eval()


def load(folder: Path, experiment: Experiment) -> tuple[AnyModel, Allocation]:
    """A model of an experiment, and its allocation.

    Raises:
        ValueError: if the model was trained in another experiment, or as `read`.
        FileNotFoundError: if a file is missing.
    """
    about = About.load(folder)
    about.check_experiment(folder, experiment)
    allocation = _allocation(folder, experiment.schema)
    with _suiting(folder):
        model = experiment.allocated(allocation, experiment.training_rows())
    return _filled(folder, about, model), allocation


def copy_encoding(encoded: Path, folder: Path) -> None:
    """Copy what turns raw values into ids to a new folder; of interactions also the users, items and pairs.

    Args:
        encoded: folder that `encode` wrote, or another copy.
        folder: to write.
    """
    folder.mkdir()
    shared = SHARED_FILES if "interactions" in read_json(encoded / SCHEMA_FILE) else ()
    for name in (SCHEMA_FILE, VOCABULARY_FILE, *shared):
        shutil.copyfile(encoded / name, folder / name)


def encoding_of(folder: Path, about: About) -> Path:
    """The folder of the encoding of a model: within the model's folder, or beside the folder of its allocation.

    Raises:
        ValueError: if there is none, or it is that of other models.
    """
    for place in (folder / ENCODING, folder.resolve().parent.parent / ENCODING):
        if place.is_dir():
            if checksum(place / SCHEMA_FILE) != about.encoding:
                raise ValueError(
                    f"{place / SCHEMA_FILE}: is not the encoding with which {folder} was trained: {ABOUT} has another "
                    "checksum; copy both together"
                )
            return place
    raise ValueError(
        f"{folder}: has no {ENCODING}/, which `retrain` writes beside all its models; give the model where `retrain` "
        "wrote it, or export it with `python -m stages.export` to a folder that stands alone"
    )
