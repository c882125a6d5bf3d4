"""The schema of params.yaml, one class for each section, and its restriction to the parameters of one stage."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from pipeline.workflow.chain import Chain
from pipeline.workflow.plug import check_name
from pipeline.workflow.seeds import Seed, Seeds, distinct
from pipeline.workflow.validation import AsTuple, Budget, Count, Fraction, Positive, Rate, Section, validated
from pipeline.workflow.yaml_values import read_yaml

FILE = Path("params.yaml")
BESIDE = ("sweep", "stream", "chain")  # sections that no stage of the main job reads
PLUGS = {"dataset": "datasets", "task": "tasks", "method": "methods", "backbone": "backbones"}  # section: folder


def _word(value: str) -> str:
    if not re.fullmatch(r"[\w.\-]+", value):
        raise ValueError(f"must be of letters, digits, '_', '.' and '-', got {value!r}")
    return value


LARGEST_DIM = 4096
Dim = Annotated[int, Field(ge=1, le=LARGEST_DIM)]
Dims = Annotated[tuple[Annotated[int, Field(ge=0, le=LARGEST_DIM)], ...], AsTuple, AfterValidator(distinct)]
BatchSize = Annotated[int, Field(ge=3)]  # a smaller size can leave a batch of one row, which BatchNorm refuses
Share = Annotated[float, Field(gt=0, lt=1)]
DenseBits = Annotated[int, Field(ge=2, le=8)]
Schedule = Literal["constant", "linear"]  # of a learning rate; see `pipeline.training.weights.LitWeights`
Precision = Literal[32, "bf16"]


class Plug(Section):
    """The name of a file in one of the plug folders, and its options."""

    name: str
    """file of the plug, without its ending"""
    options: dict[str, Any] | None = None
    """keywords of the plug, by name"""


class Dataset(Plug):
    """The plug of the data set, and its files."""

    path: str
    """file or folder to read, relative to the repository"""


class Split(Section):
    """How the rows are divided into four parts. Their shares sum to 1."""

    by: Literal["random", "time", "given"]
    """random: by a hash of the row's number and the seed; time: into parts that follow each other, where rows of the
    same time stay in the same part, so that the shares are approximate; given: test is what the publisher of
    interactions gave as test, and the other parts are shares of each user's other rows, by a hash, where a row of each
    user and of each item stays in train"""
    train: Share
    """share of the rows for the weights"""
    arch: Share
    """share of the rows for the architecture; the retraining uses them too"""
    val: Share
    """share of the rows that end a training early and on which settings are chosen"""
    test: Fraction
    """share of the rows that only the evaluation opens; 0 with given"""

    @property
    def shares(self) -> tuple[float, float, float, float]:
        return self.train, self.arch, self.val, self.test

    @model_validator(mode="after")
    def _sum(self) -> Split:
        if (self.by == "given") != (self.test == 0):
            rule = "must be 0, because the data say which rows it has" if self.by == "given" else "must be above 0"
            raise ValueError(f"with by: {self.by}, test {rule}, got {self.test:g}")
        if abs(sum(self.shares) - 1) > 1e-9:
            raise ValueError(f"the shares must sum to 1, got {list(self.shares)}, which sum to {sum(self.shares):g}")
        return self


class Encode(Section):
    """How raw values become ids."""

    split: Split
    """how the rows are divided into parts"""
    min_count: Count | None = None
    """training rows that a value needs to get its own id; null: the data set's default"""
    numeric: Literal["log-square", "quantiles"] = "log-square"
    """how numbers become categories; log-square is for counts, quantiles for everything else"""
    buckets: Annotated[int, Field(ge=2, le=2**16)] = 20
    """the most quantile buckets of a field"""
    max_bag: Annotated[int, Field(ge=1, le=2**12)] | None = None
    """the most values that a bag keeps; null: the data set's default"""
    history: Annotated[int, Field(ge=0, le=2**10)] | None = None
    """interactions of the user that a row of interactions keeps from before its time; null: the data set's default
    with a split by time, else 0"""
    seed: Seed = 0
    """seed of the random split, and of the sample for quantiles"""
    engine: Literal["local", "spark"] = "local"
    """what encodes: this machine, or Spark, see docs/scale.md; the result is the same"""


class Method(Section):
    """The method, and the options of this and other methods."""

    name: str
    """file of pipeline/methods, without its ending"""
    options: dict[str, dict[str, Any] | None] | None = None
    """options by name of the method, so that changing the name is enough to try another method"""

    @property
    def own_options(self) -> dict[str, Any]:
        """The options of the method ``name``."""
        return (self.options or {}).get(self.name) or {}


class Architecture(Section):
    """How the architecture is trained."""

    lr: Rate = 0.001
    """learning rate of Adam on the architecture's parameters"""
    every: Count = 10
    """weight steps for each step of the architecture, f in the paper"""
    order: Literal[1, 2] = 1
    """1: first-order gradient; 2: second-order gradient, through one weight step"""
    level: Literal["bilevel", "single"] = "bilevel"
    """bilevel: the architecture learns on arch; single: on the training batches, together with the weights"""
    margin: Fraction = 0.1
    """a field is decided if its most probable candidate leads the second by at least this probability"""
    stable_steps: Annotated[float, Field(gt=0, le=1)] | None = 0.2
    """the search ends early if all fields stay decided, with the same dimensions, for this share of its steps; null:
    never"""
    trajectory_every: Count = 1
    """architecture steps between two recorded points of the trajectory"""


class Training(Section):
    """The settings that a search and a retraining have in common."""

    batch_size: BatchSize
    """rows of a batch"""
    epochs: Count
    """passes over the rows"""
    lr: Rate
    """learning rate of Adam on the weights"""
    weight_decay: Rate
    """weight decay of Adam on the weights"""
    checkpoint_seconds: Rate
    """seconds between two checkpoints; a killed training goes on from the last one"""
    devices: Annotated[Count, Field(exclude=True)] = 1
    """processes that train one model together, each on a GPU of its own if there are any; it identifies no results"""
    cuda_graph: Annotated[bool, Field(exclude=True)] = False
    """replay each step as a CUDA graph; without a GPU it changes nothing, and it identifies no results"""
    precision: Precision = 32
    """of the matrix products of the backbone in training: 32: float32; bf16: bfloat16"""

    @model_validator(mode="after")
    def _alone(self) -> Self:
        if self.cuda_graph and self.devices > 1:
            raise ValueError(f"with cuda_graph, devices must be 1, got {self.devices}")
        return self


class Search(Training):
    """The settings of the search."""

    candidates: str | dict[str, str]
    """name of a set of candidates, or names by field, with the key default for the other fields"""
    seed: Seed
    """seed of the search"""
    architecture: Architecture
    """how the architecture is trained"""

    @model_validator(mode="after")
    def _suiting(self) -> Search:
        order, level = self.architecture.order, self.architecture.level
        if self.precision == "bf16" and order == 2:
            raise ValueError("with precision bf16, architecture.order must be 1, got 2: bfloat16 has too few digits")
        if self.cuda_graph and (order, level) != (1, "bilevel"):
            raise ValueError(
                f"with cuda_graph, architecture.order must be 1 and architecture.level bilevel, got {order} and {level}"
            )
        return self


class Derive(Section):
    """The settings of the derivation."""

    budget: Budget | None
    """the most bytes of the allocation; null: no limit"""


class Finetune(Section):
    """A second, short training, in the form that is served."""

    epochs: Count
    """passes over the rows"""
    lr: Rate
    """learning rate of the first step; it falls linearly to 0"""


class Retrain(Training):
    """The settings of the retraining."""

    seeds: Seeds
    """one model is trained for each"""
    patience: Count | None
    """training stops after this many epochs without a better result on val; null: never"""
    adagrad: Positive | None = None
    """learning rate of Adagrad, which then trains the tables instead of Adam; null: Adam"""
    tables: Literal["local", "torchrec"] = "local"
    """local: every process of a training holds all tables; torchrec: each holds a part of them"""
    dense_bits: DenseBits | None = None
    """bits of the weights of dense layers, which are rounded after training; null: float32"""
    schedule: Schedule = "linear"
    """linear: the learning rate falls to 0 over all epochs, even if training stops earlier; constant: it stays"""
    finetune: Finetune | None = None
    """a second training, kept if it is better on val; null: none"""
    workers: Annotated[Count, Field(exclude=True)] = 1
    """models that are trained at the same time; it identifies no results"""

    @model_validator(mode="after")
    def _suiting(self) -> Retrain:
        if self.devices > 1 and self.workers > 1:
            raise ValueError(
                f"with devices {self.devices}, workers must be 1, got {self.workers}: the processes train one model "
                "after another"
            )
        if self.adagrad is not None and self.weight_decay:
            raise ValueError(f"with adagrad, weight_decay must be 0, got {self.weight_decay:g}: only Adam has it here")
        if self.cuda_graph and self.adagrad is not None:
            raise ValueError(f"with cuda_graph, adagrad must be null, got {self.adagrad:g}")
        if self.tables == "torchrec" and self.adagrad is None:
            raise ValueError(
                "with tables torchrec, adagrad must be a learning rate, e.g. 0.05, got null: the kernels for tables on "
                "processors have no Adam"
            )
        if self.tables == "torchrec" and self.finetune is not None:
            raise ValueError("with tables torchrec, finetune must be null: it trains a model that one process holds")
        return self


class Evaluate(Section):
    """The settings of the evaluation."""

    tolerance: Rate
    """the knee of the curve is the smallest size that loses less of the objective on val"""
    references: bool = True
    """of interactions: whether popularity, neighbours and other references that learn no table are compared"""


class Sweep(Section):
    """The settings of a sweep."""

    name: Annotated[str, AfterValidator(_word)]
    """name of the study in Optuna"""
    trials: Count
    """finished trials; a larger number continues the same study"""
    seed: Seed
    """seed of the sampler"""
    sampler: Literal["tpe", "random", "nsga2"]
    """sampler of Optuna"""
    objective: Literal["pareto", "budget"]
    """pareto: quality on val and bytes; budget: quality on val within a budget of bytes"""
    budget: Budget | None
    """the most bytes of a trial; null with pareto"""
    space: dict[str, Any]
    """values to try, nested as in params.yaml: a list holds choices, {low, high} is a range, also with log or step"""
    workers: Count
    """trials that run at the same time"""

    @model_validator(mode="after")
    def _aim(self) -> Sweep:
        if (self.objective == "budget") == (self.budget is None):
            wanted = "needs a budget" if self.objective == "budget" else "takes no budget; set it to null"
            raise ValueError(f"objective {self.objective!r} {wanted}")
        return self


class Stream(Section):
    """The settings of AutoEmb along the rows in the order of time."""

    dims: Annotated[tuple[Dim, ...], AsTuple, AfterValidator(distinct)]
    """candidate dimensions of every field, ascending; the last is D"""
    seeds: Seeds
    """each method runs once for each"""
    rows: Count | None
    """rows that are used, from the start; null: all"""
    batch_size: BatchSize
    """rows of a batch"""
    lr: Rate
    """learning rate of the weights"""
    arch_lr: Rate
    """learning rate of the controllers"""
    windows: Count
    """parts of the stream that have figures of their own"""

    @model_validator(mode="after")
    def _ascending(self) -> Stream:
        if list(self.dims) != sorted(self.dims):
            raise ValueError(f"dims must be ascending, got {list(self.dims)}")
        return self


class Params(Section):
    """The whole of params.yaml. The text below an attribute says what it means; ``--help`` and the docs show it."""

    dataset: Dataset
    encode: Encode
    task: Plug
    dim: Dim
    """D, the full dimension of a field, and the width of the vectors that the backbone takes"""
    candidates: dict[str, Dims]
    """named sets of candidate dimensions; 0 drops a field"""
    method: Method
    backbone: Plug
    search: Search
    derive: Derive
    retrain: Retrain
    evaluate: Evaluate
    sweep: Sweep
    stream: Stream
    chain: Chain

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
