"""An experiment: data, a task, a method and a backbone, resolved once from the parameters and immutable."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pipeline.allocation.allocation import Allocation
from pipeline.data.encoded import Encoded
from pipeline.data.schema import Schema
from pipeline.data.split import Split
from pipeline.embeddings.contract import FieldEmbedding
from pipeline.experiment.method import Method, build, offered
from pipeline.models.model import MakeBackbone, Model, outputs_of
from pipeline.models.retriever import AnyModel, Retriever, fields_used, retrieves
from pipeline.training.task import Task
from pipeline.workflow.address import address_of
from pipeline.workflow.params import Architecture, Params
from pipeline.workflow.places import root
from pipeline.workflow.plug import file_of, names, plug
from pipeline.workflow.validation import checked_options, validated

CONTROLS = ("full", "uniform", "random")  # methods with which every allocation is compared


@dataclass(frozen=True)
class Experiment:
    """The parts that the parameters name, on encoded data. A part is resolved, and its options checked, at first use.

    Args:
        params: may be restricted to those that a stage declares.
        data: the encoded data.
    """

    params: Params
    data: Encoded

    @cached_property
    def schema(self) -> Schema:
        """The fields that the backbone uses; all, unless the rows are interactions."""
        if self.data.interactions is None:
            return self.data.schema
        return fields_used(self.backbone, self.data.schema, self.data.interactions.keys, self.backbone_options)

    def model(self, embedding: FieldEmbedding, kept: Schema, rows: Split) -> AnyModel:
        """A fresh model.

        Args:
            embedding: of the fields ``kept``.
            kept: all fields of `schema`, or some of them.
            rows: to train on; the graph of a graph backbone has their interactions.
        """
        shared = rows.interactions
        if shared is None:
            return Model(self.schema, embedding, self.backbone, self.backbone_options, kept)
        return Retriever(shared, shared.pairs(*rows.parts), embedding, self.backbone, self.backbone_options, kept)

    def allocated(self, allocation: Allocation, rows: Split) -> AnyModel:
        """A fresh model with the embedding of an allocation, whose dropped fields it omits.

        Raises:
            ValueError: if the allocation does not fit the schema.
        """
        allocation.check(self.schema)
        kept = self.schema.subset(allocation.kept())
        return self.model(build(kept, self.dim, allocation.of_kept()), kept, rows)

    def training_rows(self, share: float = 1.0) -> Split:
        """The rows of ``train`` and ``arch``; of every 1 / ``share`` rows one."""
        return self.data.split("train", "arch").thinned(share)

    @property
    def dim(self) -> int:
        """D, the dimension of every field after its embedding."""
        return self.params.dim

    @cached_property
    def task(self) -> Task:
        """The task, checked against the data."""
        task = _task(self.params)
        task.check(self.data)
        return task

    @cached_property
    def method(self) -> Method:
        return Method.named(self.params.method.name, self.params.method.own_options)

    @cached_property
    def backbone(self) -> MakeBackbone:
        """The class; its options are `backbone_options`."""
        backbone: MakeBackbone = plug("backbones", self.params.backbone.name).Backbone
        task, wanted = _task(self.params), self.data.interactions is not None
        if retrieves(backbone) != wanted:
            what, has = ("interactions", "rows with labels") if wanted else ("rows with labels", "interactions")
            raise ValueError(
                f"params.yaml: backbone.name: the data are {what}, and {self.params.backbone.name} is for {has}; there "
                f"are {', '.join(sorted(suitable(wanted, task.outputs)))}"
            )
        _check_outputs(task, self.params.backbone.name)
        return backbone

    @cached_property
    def backbone_options(self) -> dict[str, Any]:
        return checked_options([self.backbone], self.params.backbone.options or {}, "params.yaml: backbone.options")

    @cached_property
    def architecture(self) -> Architecture:
        """How the architecture is trained: the method's ``ARCHITECTURE``, and params.yaml for the rest."""
        values = self.params.search.architecture.model_dump() | dict(self.method.architecture)
        return validated(Architecture, values, f"ARCHITECTURE of method {self.method.name}")

    @cached_property
    def candidates(self) -> tuple[tuple[int, ...], ...]:
        """Candidate dims of each field, ascending."""
        if self.method.own_candidates is not None:
            return offered(self.method, self.schema, self.dim, [])
        sets = _candidate_sets(self.params)
        self.schema.check_names(set(sets) - {"default"})
        without = [name for name in self.schema.names if name not in sets and "default" not in sets]
        if without:
            raise ValueError(
                f"params.yaml: search.candidates has no set for field {without[0]!r} and no default; add one"
            )
        return tuple(sets[name if name in sets else "default"] for name in self.schema.names)

    def check(self) -> None:
        """Resolve and check all parts.

        Raises:
            ValueError: naming a wrong parameter, its value, and the valid ones.
        """
        for part in ("task", "backbone_options", "architecture", "candidates"):
            getattr(self, part)
        self.method.check(self.dim)

    def code(self, *starts: str) -> Iterator[str]:
        """The given source files and those of the experiment's plugs, for `pipeline.workflow.code.content_key`."""
        yield from starts
        yield file_of("tasks", self.params.task.name)
        yield file_of("backbones", self.params.backbone.name)
        for name in dict.fromkeys((self.params.method.name, *CONTROLS)):
            yield file_of("methods", name)


def _task(params: Params, place: str = "params.yaml") -> Task:
    """The task that the parameters name, with checked options."""
    return Task.of(
        params.task.name, plug("tasks", params.task.name), params.task.options or {}, f"{place}: task.options"
    )


def suitable(interactions: bool, outputs: int = 1) -> list[str]:
    """The names of the backbones for interactions, or of those for rows with labels, with so many numbers of a row."""
    made = {name: plug("backbones", name).Backbone for name in names("backbones")}
    return [name for name, of in made.items() if retrieves(of) == interactions and outputs_of(of) == outputs]


def _check_outputs(task: Task, name: str, place: str = "params.yaml") -> None:
    """Check that a backbone gives as many numbers of a row as a task needs.

    Raises:
        ValueError: naming the backbones that do.
    """
    backbone = plug("backbones", name).Backbone
    if outputs_of(backbone) != task.outputs:
        raise ValueError(
            f"{place}: backbone.name: task {task.name} needs {task.outputs} outputs of a row, and {name} gives "
            f"{outputs_of(backbone)}; there are {', '.join(suitable(retrieves(backbone), task.outputs)) or 'none'}"
        )


def _candidate_sets(params: Params, place: str = "params.yaml") -> dict[str, tuple[int, ...]]:
    """The candidate dims, ascending, that ``search.candidates`` names, by field or "default".

    Raises:
        ValueError: if there is no such set, a dim in it is above ``dim``, or no dim is above 0.
    """
    choice, sets = params.search.candidates, params.candidates
    named = {"default": choice} if isinstance(choice, str) else choice
    for field, key in named.items():
        if key not in sets:
            of_field = "" if field == "default" else f" for field {field!r}"
            raise ValueError(
                f"{place}: search.candidates: there is no set {key!r}{of_field}; there are {', '.join(sorted(sets))}"
            )
        if max(sets[key]) > params.dim:
            raise ValueError(
                f"{place}: candidates.{key} goes up to {max(sets[key])}, and dim is {params.dim}; raise dim, or "
                "choose another set in search.candidates"
            )
    if not any(max(sets[key]) for key in named.values()):
        raise ValueError(
            f"{place}: candidates.{min(named.values())} has only 0, which drops every field; add a dim above 0"
        )
    return {field: tuple(sorted(sets[key])) for field, key in named.items()}


def check_params(params: Params, place: str = "params.yaml") -> None:
    """Check, before any data are read, that the data set is there, all plugs exist, their options are valid, the
    candidates fit ``dim``, and the task can be trained as the settings say.

    Args:
        params: all parameters.
        place: where the user wrote them, for messages.

    Raises:
        ValueError: naming a wrong parameter, its value, and the valid ones.
    """
    table = root() / params.dataset.path
    if address := address_of(params.dataset.path):
        if params.encode.engine != "spark":
            raise ValueError(
                f"{place}: dataset.path: {address} is an address, which Spark reads; set encode.engine to "
                "spark, or give the file or the folder of a copy on this machine"
            )
    elif not (table.is_file() or table.is_dir()):
        kind = "no file or folder, but a pipe or a device, at" if table.exists() else "no"
        raise ValueError(
            f"{place}: dataset.path: there is {kind} {params.dataset.path!r} in {root()}; give the file or the "
            "folder of the data set"
        )
    checked_options(
        [plug("datasets", params.dataset.name).read], params.dataset.options or {}, f"{place}: dataset.options"
    )
    task = _task(params, place)
    for name, options in (params.method.options or {}).items():
        Method.named(name, options, place).check(params.dim, place)
    method = Method.named(params.method.name, params.method.own_options, place)
    if method.own_candidates is None:
        _candidate_sets(params, place)
    backbone = plug("backbones", params.backbone.name).Backbone
    _check_outputs(task, params.backbone.name, place)
    checked_options([backbone], params.backbone.options or {}, f"{place}: backbone.options")
    if retrieves(backbone):
        _check_ranking(params, place)


def _check_ranking(params: Params, place: str) -> None:
    """Check that no setting is there which models that rank items do not have.

    Raises:
        ValueError: naming the setting and its remedy.
    """
    if params.retrain.tables == "torchrec":
        raise ValueError(
            f"{place}: retrain.tables is torchrec, and several processes cannot share a model that ranks items; set it "
            "to local"
        )
    for section in ("search", "retrain"):
        settings = getattr(params, section)
        if settings.cuda_graph:
            raise ValueError(
                f"{place}: {section}.cuda_graph is true, and batches for models that rank items have many shapes; set "
                "it to false"
            )
        if settings.devices > 1:
            raise ValueError(
                f"{place}: {section}.devices is {settings.devices}, and several processes cannot share a model that "
                "ranks items; set it to 1"
            )
