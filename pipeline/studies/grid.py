"""The definition of a study: a grid of cells, each with its own parameters, arms and seeds.

``studies/<name>/params.yaml`` has a section for each profile, with the seeds and a list of values for each key of the
grid; the grid is the product of these lists. It also has a section for each key, which defines each value with an
`Entry`. ``studies/datasets.yaml`` defines the values of the key ``dataset``. The section ``every``, in the file or in a
profile, applies to all cells.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.experiment.experiment import CONTROLS
from pipeline.experiment.method import Method
from pipeline.workflow.code import ROOT, content_key
from pipeline.workflow.overlay import merged
from pipeline.workflow.params import Params
from pipeline.workflow.plug import file_of, names
from pipeline.workflow.validation import AsTuple, Budget, Positive, Section, validated
from pipeline.workflow.yaml_values import read_yaml

STUDIES = ROOT / "studies"
SIZED = ("searched", "uniform", "random")  # arms whose size depends on the budget
WORLDS = "chain/worlds"  # the plugs of agents
READ = ["dataset", "encode", "task", "dim", "candidates", "method", "backbone", "search", "retrain"]  # of a cell
REFERENCES = "references"  # the arm of recommenders that learn no table
AGENTS = "agents"  # the arm of agents in simulated sessions
Arm = Literal["searched", "uniform", "random", "full", "alone", "references", "agents"]


class Entry(Section):
    """The definition of a value of the grid.

    Args:
        params: changes to the repository's params.yaml.
        search: further changes, for the search alone.
        arms: the models to train and test: ``searched``; ``uniform`` and ``random``, of the same size; ``full``; or
            ``alone``, with one field at the full dimension; or ``references``, of interactions, which stand alone: see
            `pipeline.references`; or ``agents``, of the section ``chain``, which stand alone, too. An empty list ends
            the cell after the search.
        budgets: bytes, shares of the full tables, or null for no budget. All arms are trained for each budget.
        tuning: settings to try before the test, if ``tuned`` is true; each is a set of changes like ``params``. Each
            setting has one search and one training, with a separate seed. The setting that is best on ``val`` is used,
            for each budget separately; a setting that cannot keep a budget is left out there.
        tuned: whether to try the settings of ``tuning``.
        share: share of the rows of ``train`` and ``arch`` that the search reads, 1/k.
        field: name of the field of the arm ``alone``.
        impaired: whether each model is also tested with less than it was trained on; see
            `pipeline.studies.retrieved.impaired`.
        played: of the data set ``sessions``: whether agents learn and play with the item table of each model; see
            `pipeline.studies.chained.rewards`.
        seconds: rough duration of a search or a training on one thread, for the estimate and the order of the cells.
        slower: factor on ``seconds`` with this value.
    """

    params: dict[str, Any] = Field(default_factory=dict)
    search: dict[str, Any] = Field(default_factory=dict)
    arms: Annotated[tuple[Arm, ...], AsTuple] = ("searched", "uniform", "random")
    budgets: Annotated[tuple[Budget | None, ...], AsTuple] = (None,)
    tuning: Annotated[tuple[dict[str, Any], ...], AsTuple] = ()
    tuned: bool = False
    share: Positive = 1.0
    field: str | None = None
    impaired: bool = False
    played: bool = False
    seconds: Positive = 60.0
    slower: Positive = 1.0

    @model_validator(mode="after")
    def _alone(self) -> Entry:
        for arm in (REFERENCES, AGENTS):
            if arm in self.arms and (len(self.arms) > 1 or self.budgets != (None,)):
                raise ValueError(f"the arm {arm} stands alone and has no budget, got arms {list(self.arms)}")
        return self


@dataclass(frozen=True)
class Setting:
    """The parameters of a cell and of its search.

    Args:
        params: of everything except the search.
        search: of the search.
    """

    params: Params
    search: Params


@dataclass(frozen=True)
class Cell:
    """One cell of a study.

    Args:
        study: name of the study.
        profile: name of the profile.
        keys: its place in the grid: key -> value.
        seeds: of both search and retraining.
        setting: its parameters.
        entry: arms, budgets and costs, merged from the entries of all its values.
        tuning: settings to try before the test.
    """

    study: str
    profile: str
    keys: dict[str, str]
    seeds: tuple[int, ...]
    setting: Setting
    entry: Entry
    tuning: tuple[Setting, ...] = ()

    def settings(self) -> list[Cell]:
        """The cell with each of the settings to try; the cell itself if there are none."""
        return [replace(self, setting=setting, tuning=()) for setting in self.tuning] or [self]

    @property
    def name(self) -> str:
        """Its values in the grid, joined by hyphens."""
        return "-".join(self.keys.values())

    @property
    def params(self) -> Params:
        """Its parameters, of everything except the search."""
        return self.setting.params

    @property
    def method(self) -> Method:
        """Its method, with the method's options."""
        return Method.named(self.params.method.name, self.params.method.own_options)

    @property
    def searches(self) -> bool:
        """Whether the cell searches: an arm needs a search, or the cell has no arms."""
        return self.method.finds and (not self.entry.arms or bool(set(SIZED) & set(self.entry.arms)))

    @property
    def runs(self) -> int:
        """Number of searches and trainings, over all seeds."""
        if REFERENCES in self.entry.arms:
            return 1
        if AGENTS in self.entry.arms:
            chain = self.params.chain
            return len(self.seeds) * len(chain.worlds) * len(chain.transitions) * len(chain.agents)
        sized, budgets = len([arm for arm in self.entry.arms if arm in SIZED]), len(self.entry.budgets)
        searches = self.searches * (budgets if self.method.targets else 1)
        tried = len(self.tuning) * (searches + budgets)
        return tried + len(self.seeds) * (searches + sized * budgets + len(self.entry.arms) - sized)

    @property
    def cost(self) -> float:
        """Rough duration of the cell on one thread, in seconds."""
        return self.runs * self.entry.seconds * self.entry.slower

    def recipe(self) -> str:
        """A hash of all that its figures depend on, except the data: parameters, arms, seeds and code."""
        settings = [
            [one.params.only(READ).to_dict(), one.search.only(READ).to_dict()] for one in (self.setting, *self.tuning)
        ]
        entry = self.entry.model_dump(include={"arms", "budgets", "share", "field", "impaired"})
        if AGENTS in self.entry.arms:
            code = ["pipeline/studies/chained.py", *(file_of(WORLDS, name) for name in names(WORLDS))]
            return content_key(code, self.params.only(["chain"]).to_dict(), self.seeds)
        plugs = {file_of("methods", control) for control in CONTROLS}
        if self.entry.played:
            plugs |= {file_of(WORLDS, name) for name in names(WORLDS)}
            settings.append([self.params.only(["chain"]).to_dict()])
        for one in (self.setting, *self.tuning):
            for params in (one.params, one.search):  # a search may have a backbone of its own
                plugs |= {file_of("tasks", params.task.name), file_of("backbones", params.backbone.name)}
                plugs.add(file_of("methods", params.method.name))
        return content_key(["pipeline/studies/cell.py", *plugs], settings, entry, self.seeds)


class Study:
    """The definition of a study, read from its files.

    Args:
        name: of the study.
        profile: name of a section of the study's params.yaml that has seeds.
        folder: of the study; by default ``studies/<name>``.

    Raises:
        ValueError: if there is no such study or profile.
    """

    def __init__(self, name: str, profile: str, folder: Path | None = None) -> None:
        self.name, self.profile = name, profile
        self.folder = folder or STUDIES / name
        if not (self.folder / "params.yaml").is_file():
            there = sorted(path.parent.name for path in STUDIES.glob("*/params.yaml"))
            raise ValueError(f"there is no study {name!r} in studies; there are {', '.join(there)}")
        self.values: dict[str, Any] = read_yaml(self.folder / "params.yaml")
        self.datasets: dict[str, Any] = read_yaml(self.folder.parent / "datasets.yaml")
        profiles = [key for key, value in self.values.items() if isinstance(value, dict) and "seeds" in value]
        if profile not in profiles:
            raise ValueError(f"{self._place()}: there is no profile {profile!r}; there are {', '.join(profiles)}")
        grid = dict(self.values[profile])
        self.seeds: tuple[int, ...] = tuple(grid.pop("seeds"))
        self.every: dict[str, Any] = merged(self.values.get("every", {}), grid.pop("every", {}))
        self.grid: dict[str, list[str]] = grid

    def cells(self) -> list[Cell]:
        """All cells, in the order of the grid.

        Raises:
            ValueError: as `cell`.
        """
        return [
            self.cell(dict(zip(self.grid, values, strict=True))) for values in itertools.product(*self.grid.values())
        ]

    def cell(self, keys: Mapping[str, str]) -> Cell:
        """The cell at a place in the grid.

        Args:
            keys: a value for each key of the grid.

        Raises:
            ValueError: if the keys are not those of the grid, a value is not defined, or its parameters are not valid.
        """
        if set(keys) != set(self.grid):
            raise ValueError(f"a cell of {self.name} has the keys {', '.join(self.grid)}, got {', '.join(keys)}")
        entry, place = self._entry(keys)
        params = merged(read_yaml(ROOT / "params.yaml"), entry.params)
        tuning = [merged(params, change) for change in entry.tuning] if entry.tuned else []
        settings = [
            Setting(validated(Params, one, place), validated(Params, merged(one, entry.search), place))
            for one in (params, *tuning)
        ]
        ordered = {key: keys[key] for key in self.grid}
        return Cell(self.name, self.profile, ordered, self.seeds, settings[0], entry, tuple(settings[1:]))

    def _entry(self, keys: Mapping[str, str]) -> tuple[Entry, str]:
        """The merged entries of all values, and where the last one stands in the file, for messages."""
        values: dict[str, Any] = copy.deepcopy(self.every)
        place = f"{self._place()}: every"
        self._check_data(values, place)
        for key, value in keys.items():
            validated(Entry, values, place)
            place = f"{self._place()}: {key}: {value}"
            source = self.datasets.get(self.profile, {}) if key == "dataset" else self.values.get(key, {})
            if value not in source:
                raise ValueError(f"{place} is in the grid, but has no section that defines it")
            own = source[value] or {}
            if key != "dataset":
                self._check_data(own, place)
            values = merged(values, own)
        return validated(Entry, values, place), place

    @staticmethod
    def _check_data(own: Mapping[str, Any], place: str) -> None:
        """Check that an entry does not change the data: all cells of a data set read the same encoded data."""
        changes = [own.get("params"), own.get("search"), *(own.get("tuning") or [])]
        for name in ("dataset", "encode"):
            if any(isinstance(change, dict) and name in change for change in changes):
                raise ValueError(
                    f"{place}: must not change {name}, because all cells of a data set read the same data; change it "
                    "in studies/datasets.yaml"
                )

    def dataset(self, name: str) -> Cell:
        """Any cell of a data set; all of them read the same data.

        Args:
            name: of the data set.

        Raises:
            ValueError: if no cell has this data set.
        """
        first = next((cell for cell in self.cells() if cell.keys["dataset"] == name), None)
        if first is None:
            raise ValueError(f"study {self.name}, profile {self.profile}, has no data set {name!r}")
        return first

    def _place(self) -> str:
        return str((self.folder / "params.yaml").relative_to(self.folder.parents[1]))
