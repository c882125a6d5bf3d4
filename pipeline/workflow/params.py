"""The schema of params.yaml, one class for each section, and its restriction to the parameters of one stage."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.workflow.plug import check_name
from pipeline.workflow.validation import AsTuple, Budget, Count, Fraction, Rate, Section, Whole, validated

FILE = Path("params.yaml")
BESIDE = ("sweep", "stream")  # sections that no stage of the main job reads
PLUGS = {"dataset": "datasets", "task": "tasks", "method": "methods", "backbone": "backbones"}  # section: folder


def _distinct(values: tuple[int, ...]) -> tuple[int, ...]:
    if not values or len(set(values)) < len(values):
        raise ValueError(f"must be at least one number, and no number twice, got {list(values)}")
    return values


def _word(value: str) -> str:
    if not re.fullmatch(r"[\w.\-]+", value):
        raise ValueError(f"must be of letters, digits, '_', '.' and '-', got {value!r}")
    return value


Seeds = Annotated[tuple[Whole, ...], AsTuple, AfterValidator(_distinct)]
Dims = Annotated[tuple[Whole, ...], AsTuple, AfterValidator(_distinct)]
BatchSize = Annotated[int, Field(ge=3)]  # a smaller size can leave a batch of one row, which BatchNorm refuses
Share = Annotated[float, Field(gt=0, lt=1)]
DenseBits = Annotated[int, Field(ge=2, le=8)]
Schedule = Literal["constant", "linear"]  # of a learning rate; see `pipeline.training.weights.LitWeights`


class Plug(Section):
    """The name of a file in one of the plug folders, and its options."""

    name: str
    options: dict[str, Any] | None = None


class Dataset(Plug):
    """The plug of the data set, and the path of its files, relative to the repository."""

    path: str


class Split(Section):
    """How the rows are divided into four parts.

    Args:
        by: "random", by a hash of the row's number and the seed; or "time", into parts that follow each other in time.
        train, arch, val, test: shares of the rows; they sum to 1. With "time", rows of the same time stay together in
            the earlier part, so the shares are approximate.
    """

    by: Literal["random", "time"]
    train: Share
    arch: Share
    val: Share
    test: Share

    @property
    def shares(self) -> tuple[float, float, float, float]:
        return self.train, self.arch, self.val, self.test

    @model_validator(mode="after")
    def _sum(self) -> Split:
        if abs(sum(self.shares) - 1) > 1e-9:
            raise ValueError(f"the shares must sum to 1, got {list(self.shares)}, which sum to {sum(self.shares):g}")
        return self


class Encode(Section):
    """How raw values become ids.

    Args:
        min_count: number of training rows that a value needs to get its own id; null for the data set's default.
        numeric: how numbers become categories: by `pipeline.encoding.buckets.log_square`, or by quantiles.
        buckets: largest number of quantile buckets of a field.
        max_bag: slots of a bag; null for the data set's default.
        seed: of the random split and of the sample for quantiles.
    """

    split: Split
    min_count: Count | None = None
    numeric: Literal["log-square", "quantiles"] = "log-square"
    buckets: Annotated[int, Field(ge=2)] = 20
    max_bag: Count | None = None
    seed: Whole = 0


class Method(Section):
    """The method, and the options of this and other methods.

    Args:
        options: by name of the method, so that changing ``name`` is enough to try another method.
    """

    name: str
    options: dict[str, dict[str, Any] | None] | None = None

    @property
    def own_options(self) -> dict[str, Any]:
        """The options of the method ``name``."""
        return (self.options or {}).get(self.name) or {}


class Architecture(Section):
    """How the architecture is trained.

    Args:
        lr: of Adam on the architecture parameters.
        every: weight steps per architecture step, the paper's f.
        order: 1 or 2; see `pipeline.training.bilevel`.
        level: "bilevel": on batches of ``arch``. "single": on the training batches, together with the weights
            (AutoDim-s).
        margin: a field is decided if its most probable candidate leads the second by at least this probability.
        stable_steps: the search ends early once all fields are decided and unchanged for this share of the planned
            steps; null to never end early.
        trajectory_every: architecture steps between two recorded points of the trajectory.
    """

    lr: Rate = 0.001
    every: Count = 10
    order: Literal[1, 2] = 1
    level: Literal["bilevel", "single"] = "bilevel"
    margin: Fraction = 0.1
    stable_steps: Annotated[float, Field(gt=0, le=1)] | None = 0.2
    trajectory_every: Count = 1


class Training(Section):
    """The settings that a search and a retraining have in common."""

    batch_size: BatchSize
    epochs: Count
    lr: Rate
    weight_decay: Rate
    checkpoint_seconds: Rate


class Search(Training):
    """The settings of the search.

    Args:
        candidates: name of a set of `Params.candidates`, or such names by field, with the key ``default`` for the rest.
        seed: of the search.
        architecture: how the architecture is trained.
    """

    candidates: str | dict[str, str]
    seed: Whole
    architecture: Architecture


class Derive(Section):
    """The budget of the allocation; null for none."""

    budget: Budget | None


class Finetune(Section):
    """The settings of a second, short training, in the form that is served, at a learning rate that falls to 0.

    Args:
        epochs: number of epochs.
        lr: learning rate of the first step; it falls linearly.
    """

    epochs: Count
    lr: Rate


class Retrain(Training):
    """The settings of the retraining.

    Args:
        seeds: one model is trained for each.
        patience: epochs without an improvement on ``val`` after which training stops; null to train all epochs.
        dense_bits: bits of a weight of a dense layer, to which it is rounded after training; null for float32.
        schedule: "constant": the learning rate stays ``lr``. "linear": it falls linearly from ``lr`` to 0, over all
            ``epochs``, even if training stops before the last of them.
        finetune: a second training, kept only if it improves the objective on ``val``; null for none.
        workers: models that are trained at the same time. It identifies no results.
    """

    seeds: Seeds
    patience: Count | None
    dense_bits: DenseBits | None = None
    schedule: Schedule = "linear"
    finetune: Finetune | None = None
    workers: Annotated[Count, Field(exclude=True)] = 1


class Evaluate(Section):
    """The settings of the evaluation.

    Args:
        tolerance: loss of the objective on ``val`` that a smaller size may cost; it defines the knee of the curve.
    """

    tolerance: Rate


class Sweep(Section):
    """The settings of ``stages.sweep``.

    Args:
        name: of the Optuna study.
        trials: number of trials.
        seed: of the sampler.
        sampler: Optuna's sampler.
        objective: "pareto": quality against bytes. "budget": quality among allocations within ``budget``.
        budget: of every trial; null with "pareto".
        space: values to try, by key of params.yaml; see `pipeline.sweeps.space`.
        workers: processes that run trials at the same time.
    """

    name: Annotated[str, AfterValidator(_word)]
    trials: Count
    seed: Whole
    sampler: Literal["tpe", "random", "nsga2"]
    objective: Literal["pareto", "budget"]
    budget: Budget | None
    space: dict[str, Any]
    workers: Count

    @model_validator(mode="after")
    def _aim(self) -> Sweep:
        if (self.objective == "budget") == (self.budget is None):
            wanted = "needs a budget" if self.objective == "budget" else "takes no budget; set it to null"
            raise ValueError(f"objective {self.objective!r} {wanted}")
        return self


class Stream(Section):
    """The settings of ``stages.stream``.

    Args:
        dims: candidate dims of every field, ascending.
        seeds: one run of every method for each.
        rows: number of rows, from the start of the stream; null for all.
        batch_size: rows of a batch.
        lr: of the weights.
        arch_lr: of the controller.
        windows: number of parts of the stream in the report.
    """

    dims: Annotated[tuple[Count, ...], AsTuple, AfterValidator(_distinct)]
    seeds: Seeds
    rows: Count | None
    batch_size: BatchSize
    lr: Rate
    arch_lr: Rate
    windows: Count

    @model_validator(mode="after")
    def _ascending(self) -> Stream:
        if list(self.dims) != sorted(self.dims):
            raise ValueError(f"dims must be ascending, got {list(self.dims)}")
        return self


class Params(Section):
    """The whole of params.yaml.

    Args:
        dim: D, the full dimension of a field and the width of the vectors that the backbone takes.
        candidates: named sets of candidate dims; 0 drops a field.
    """

    dataset: Dataset
    encode: Encode
    task: Plug
    dim: Count
    candidates: dict[str, Dims]
    method: Method
    backbone: Plug
    search: Search
    derive: Derive
    retrain: Retrain
    evaluate: Evaluate
    sweep: Sweep
    stream: Stream

    @model_validator(mode="after")
    def _names(self) -> Params:
        for key, folder in PLUGS.items():
            check_name(folder, getattr(self, key).name, f"{key}.name")
        for name in self.method.options or {}:
            check_name("methods", name, "method.options")
        return self

    @classmethod
    def load(cls, path: str | Path = FILE) -> Params:
        """Read and check a whole file.

        Raises:
            ValueError: in one line, if the file does not fit the classes of this module.
        """
        return validated(cls, read_yaml(path), str(path))

    @classmethod
    def of_stage(cls, stage: str) -> Params:
        """The parameters that ``dvc.yaml`` declares for a stage; all of params.yaml is checked first.

        Reading any other parameter raises a `ValueError`, so a stage cannot depend on a parameter that DVC does not
        know of.
        """
        return cls.load().only(declared(stage))

    def only(self, keys: Iterable[str]) -> Params:
        """These parameters, restricted to some dotted keys, e.g. ``retrain.seeds``."""
        return _restricted(self, [key.split(".") for key in keys])

    def to_dict(self) -> dict[str, Any]:
        """Plain values of the parameters that may be read, without the options of methods that are not used."""
        values = self.model_dump(mode="json", exclude_unset=True)
        if "method" in values:
            values["method"]["options"] = {self.method.name: self.method.own_options}
        return values

    def configuration(self) -> dict[str, Any]:
        """The parameters that distinguish runs of the main job: those that its stages read."""
        return {section: value for section, value in self.to_dict().items() if section not in BESIDE}


def _restricted(section: Section, paths: list[list[str]]) -> Any:
    names = dict.fromkeys(path[0] for path in paths)
    values = {}
    for name in names:
        inner = [path[1:] for path in paths if path[0] == name]
        value = getattr(section, name)
        values[name] = value if [] in inner else _restricted(value, inner)
    return type(section).model_construct(_fields_set=set(values), **values)


def read_yaml(path: str | Path) -> Any:
    """The value in a YAML file, read as DVC reads it: in YAML 1.2, ``1e-05`` is a number and ``yes`` is a text.

    Raises:
        ValueError: naming the file, if it is not YAML.
    """
    try:
        return YAML(typ="safe", pure=True).load(Path(path).read_text(encoding="utf-8"))
    except YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}; correct it") from error


def stage_entry(stage: str) -> Mapping[str, Any]:
    """The entry of a stage in dvc.yaml; stages outside the main job have a dvc.yaml in a folder of their name."""
    own = Path(stage) / "dvc.yaml"
    entry: Mapping[str, Any] = read_yaml(own if own.is_file() else "dvc.yaml")["stages"][stage]
    return entry


def declared(stage: str) -> list[str]:
    """The dotted keys of the parameters that a stage may read."""
    return list(stage_entry(stage).get("params", []))


def value_at(values: Any, key: str) -> Any:
    """The value of nested mappings at a dotted key, e.g. ``retrain.seeds``; None if there is none."""
    for part in key.split("."):
        if not isinstance(values, Mapping) or part not in values:
            return None
        values = values[part]
    return values
