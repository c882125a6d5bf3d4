"""What a study consists of: a grid of cells, each with parameters, arms and seeds of its own.

``studies/<name>/params.yaml`` has a section for each profile, with the lists that the grid is the product of and the
seeds, and a section for each key of the grid, which says what a value of it stands for. ``studies/datasets.yaml`` does
so for ``dataset``. All cells begin with what stands under ``every``, in the file or in a profile. What a value stands
for is an `Entry`.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.experiment.experiment import CONTROLS
from pipeline.experiment.method import Method
from pipeline.workflow.code import ROOT, content_key
from pipeline.workflow.params import Params, read_yaml
from pipeline.workflow.plug import file_of
from pipeline.workflow.validation import AsTuple, Budget, Positive, Section, validated

STUDIES = ROOT / "studies"
SIZED = ("searched", "uniform", "random")  # arms that have a size of their own for every budget
READ = ["dataset", "encode", "task", "dim", "candidates", "method", "backbone", "search", "retrain"]  # by a cell
Arm = Literal["searched", "uniform", "random", "full", "alone"]


class Entry(Section):
    """What a value of the grid stands for.

    Args:
        params: differs from the repository's params.yaml.
        search: differs from that in the search alone.
        arms: what is trained and tested: ``searched``, ``uniform`` and ``random`` of its size, ``full``, or ``alone``,
            the one field that ``field`` names, at the full dimension; an empty list ends a cell with the search.
        budgets: bytes, shares of the full tables, or null, for the search's own choice; one set of arms each.
        tuning: settings to try before anything is tested, each as ``params`` is, if ``tuned`` is true. For every budget
            the best on ``val`` is kept, of one search and training each, with a seed of their own; a setting that
            cannot keep a budget is left out there.
        share: of the rows of ``train`` and ``arch`` that the search sees, 1/k.
        seconds: what a search or a training takes, roughly, on one thread, for the estimate and the order of the cells.
        slower: how many times that it takes with this value.
    """

    params: dict[str, Any] = Field(default_factory=dict)
    search: dict[str, Any] = Field(default_factory=dict)
    arms: Annotated[tuple[Arm, ...], AsTuple] = ("searched", "uniform", "random")
    budgets: Annotated[tuple[Budget | None, ...], AsTuple] = (None,)
    tuning: Annotated[tuple[dict[str, Any], ...], AsTuple] = ()
    tuned: bool = False
    share: Positive = 1.0
    field: str | None = None
    seconds: Positive = 60.0
    slower: Positive = 1.0


@dataclass(frozen=True)
class Setting:
    """Parameters of a cell, and of its search, which may differ."""

    params: Params
    search: Params


@dataclass(frozen=True)
class Cell:
    """One cell of a study.

    Args:
        keys: its place in the grid.
        seeds: of search and retraining alike.
        setting: its parameters.
        entry: arms, budgets, and the like.
        tuning: settings to try.
    """

    study: str
    profile: str
    keys: dict[str, str]
    seeds: tuple[int, ...]
    setting: Setting
    entry: Entry
    tuning: tuple[Setting, ...] = ()

    def settings(self) -> list[Cell]:
        """The cell under each of the settings that are tried; itself if there is nothing to try."""
        return [replace(self, setting=setting, tuning=()) for setting in self.tuning] or [self]

    @property
    def name(self) -> str:
        return "-".join(self.keys.values())

    @property
    def params(self) -> Params:
        return self.setting.params

    @property
    def method(self) -> Method:
        return Method.named(self.params.method.name, self.params.method.own_options)

    @property
    def searches(self) -> bool:
        """Whether there is anything to search: the arms ask for it, or it is all that the cell does."""
        return self.method.finds and (not self.entry.arms or bool(set(SIZED) & set(self.entry.arms)))

    @property
    def runs(self) -> int:
        """Searches and trainings, of all seeds."""
        sized, budgets = len([arm for arm in self.entry.arms if arm in SIZED]), len(self.entry.budgets)
        searches = self.searches * (budgets if self.method.targets else 1)
        tried = len(self.tuning) * (searches + budgets)
        return tried + len(self.seeds) * (searches + sized * budgets + len(self.entry.arms) - sized)

    @property
    def cost(self) -> float:
        """Seconds that all of it takes, roughly, on one thread."""
        return self.runs * self.entry.seconds * self.entry.slower

    def recipe(self) -> str:
        """Names all that its figures depend on but the data: parameters, arms, seeds and code."""
        settings = [
            [one.params.only(READ).to_dict(), one.search.only(READ).to_dict()] for one in (self.setting, *self.tuning)
        ]
        entry = self.entry.model_dump(include={"arms", "budgets", "share", "field"})
        plugs = {file_of("methods", control) for control in CONTROLS}
        for one in (self.setting, *self.tuning):
            for params in (one.params, one.search):  # a search may have a backbone of its own
                plugs |= {file_of("tasks", params.task.name), file_of("backbones", params.backbone.name)}
                plugs.add(file_of("methods", params.method.name))
        return content_key(["pipeline/studies/cell.py", *plugs], settings, entry, self.seeds)


class Study:
    """A study's definition.

    Raises:
        ValueError: naming the file and the place, if it is not as the module says.
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
        return [
            self.cell(dict(zip(self.grid, values, strict=True))) for values in itertools.product(*self.grid.values())
        ]

    def cell(self, keys: Mapping[str, str]) -> Cell:
        """The cell at a place of the grid."""
        if set(keys) != set(self.grid):
            raise ValueError(f"a cell of {self.name} has the keys {', '.join(self.grid)}, got {', '.join(keys)}")
        entry, place = self._entry(keys)
        if "encode" in entry.params:
            raise ValueError(f"{place}: params: encode is that of the repository's params.yaml, for all cells alike")
        params = merged(read_yaml(ROOT / "params.yaml"), entry.params)
        tuning = [merged(params, change) for change in entry.tuning] if entry.tuned else []
        settings = [
            Setting(validated(Params, one, place), validated(Params, merged(one, entry.search), place))
            for one in (params, *tuning)
        ]
        ordered = {key: keys[key] for key in self.grid}
        return Cell(self.name, self.profile, ordered, self.seeds, settings[0], entry, tuple(settings[1:]))

    def _entry(self, keys: Mapping[str, str]) -> tuple[Entry, str]:
        """What the values of a place stand for together, and the place of the last one."""
        values: dict[str, Any] = copy.deepcopy(self.every)
        place = f"{self._place()}: every"
        for key, value in keys.items():
            validated(Entry, values, place)
            place = f"{self._place()}: {key}: {value}"
            source = self.datasets.get(self.profile, {}) if key == "dataset" else self.values.get(key, {})
            if value not in source:
                raise ValueError(f"{place} is in the grid, but nothing says what it stands for")
            values = merged(values, source[value] or {})
        return validated(Entry, values, place), place

    def dataset(self, name: str) -> Cell:
        """Some cell of a data set; they all read the same data."""
        found = next((cell for cell in self.cells() if cell.keys["dataset"] == name), None)
        if found is None:
            raise ValueError(f"study {self.name}, profile {self.profile}, has no data set {name!r}")
        return found

    def _place(self) -> str:
        return str((self.folder / "params.yaml").relative_to(self.folder.parents[1]))


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A nested mapping, changed where another one says so; options do not outlive the name that they belong to."""
    result = dict(copy.deepcopy(dict(base)))
    if "name" in result and changes.get("name", result["name"]) != result["name"]:
        result.pop("options", None)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both else copy.deepcopy(value)
    return result
