"""What a study consists of: a grid of cells, each of which has parameters, arms and seeds of its own.

``studies/<name>/params.yaml`` has a section for each profile, with the lists that the grid is the product of and the
seeds, and a section for each key of the grid, which says what a value of it stands for. ``studies/datasets.yaml`` does
so for ``dataset``. What stands under ``every``, in the file or in a profile, all cells begin with. What a value stands
for (all optional):

* ``params``: differs from the repository's params.yaml;
* ``search``: differs from that in the search alone;
* ``arms``: what is trained and tested: ``searched``, ``uniform`` and ``random`` of its size, ``full``, or ``alone``,
  the one field that ``field`` names, at the full dimension; an empty list ends a cell with the search;
* ``budgets``: bytes, shares of the full tables, or null, for the search's own choice; one set of arms each;
* ``tuning``: settings to try before anything is tested, each as ``params`` is, if ``tuned`` is true; for every budget
  the one with the best AUC on ``val`` is kept, of one search and training each, with a seed of their own; one that
  cannot keep a budget is left out there;
* ``share``: of the rows of ``train`` and ``arch`` that the search sees, 1/k;
* ``seconds``: what a search or a training takes, roughly, on one thread, for the estimate and the order of the cells;
* ``slower``: how many times that it takes with this value.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from pipeline.workflow.plug import check_value
from stages import _model, _stage

ROOT = Path(__file__).resolve().parents[1]
STUDIES = ROOT / "studies"
ARMS = ("searched", "uniform", "random", "full", "alone")
Arm = Literal["searched", "uniform", "random", "full", "alone"]
KNOWN = {
    "params": Mapping[str, Any],
    "search": Mapping[str, Any],
    "arms": Sequence[Arm],
    "budgets": Sequence[Any],
    "tuning": Sequence[Mapping[str, Any]],
    "tuned": bool,
    "share": float,
    "field": str,
    "seconds": float,
    "slower": float,
}


@dataclass(frozen=True)
class Cell:
    """One cell of a study.

    Args:
        keys: its place in the grid.
        seeds: of search and retraining alike.
        params: complete parameters, as params.yaml's.
        search: complete parameters of the search.
        arms, budgets, share, alone, seconds: see the module.
        tuning: complete parameters of every setting to try, and of its search.
    """

    study: str
    profile: str
    keys: dict[str, str]
    seeds: list[int]
    params: dict[str, Any]
    search: dict[str, Any]
    arms: list[Arm]
    budgets: list[Any]
    share: float = 1.0
    alone: str | None = None
    seconds: float = 60.0
    tuning: list[tuple[dict[str, Any], dict[str, Any]]] = field(default_factory=list)

    def settings(self) -> list[Cell]:
        """The cell under each of the settings that are tried; itself if there is nothing to try."""
        tried = [replace(self, params=params, search=search, tuning=[]) for params, search in self.tuning]
        return tried or [self]

    @property
    def name(self) -> str:
        return "-".join(self.keys.values())

    @property
    def searches(self) -> bool:
        """Whether there is anything to search: the arms ask for it, or it is all that the cell does."""
        if _model.method(self.params).finds is None:
            return False
        return not self.arms or bool({"searched", "uniform", "random"} & set(self.arms))

    @property
    def targets(self) -> bool:
        """Whether there is a search for every budget."""
        return _model.method(self.params).targets

    @property
    def runs(self) -> int:
        """Searches and trainings, of all seeds."""
        sized = len([arm for arm in self.arms if arm in ("searched", "uniform", "random")])
        searches = self.searches * (len(self.budgets) if self.targets else 1)
        tried = len(self.tuning) * (searches + len(self.budgets))
        return tried + len(self.seeds) * (searches + sized * len(self.budgets) + len(self.arms) - sized)


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
            raise ValueError(f"no study {name!r} in {STUDIES.relative_to(ROOT)}; there are {', '.join(there)}")
        self.given = _yaml(self.folder / "params.yaml")
        self.datasets = _yaml(self.folder.parent / "datasets.yaml")
        profiles = [key for key, value in self.given.items() if isinstance(value, dict) and "seeds" in value]
        if profile not in profiles:
            raise ValueError(f"{self._place()}: no profile {profile!r}; there are {', '.join(profiles)}")
        grid = dict(self.given[profile])
        self.seeds: list[int] = grid.pop("seeds")
        self.every: dict[str, Any] = merged(self.given.get("every", {}), grid.pop("every", {}))
        self.grid: dict[str, list[str]] = grid

    def cells(self) -> list[Cell]:
        return [
            self.cell(dict(zip(self.grid, values, strict=True))) for values in itertools.product(*self.grid.values())
        ]

    def cell(self, keys: Mapping[str, str]) -> Cell:
        """The cell at a place of the grid."""
        if set(keys) != set(self.grid):
            raise ValueError(f"a cell of {self.name} has the keys {list(self.grid)}, however {dict(keys)}")
        base = _yaml(ROOT / "params.yaml")
        for section in set(base) - set(_stage.Params.__annotations__):
            del base[section]
        for section in _stage.BESIDE:
            base.pop(section, None)
        entry: dict[str, Any] = copy.deepcopy(self.every)
        place = f"{self._place()}: every"
        for key, value in keys.items():
            check_value(entry, dict[str, Any], place)
            place = f"{self._place()}: {key}: {value}"
            source = self.datasets.get(self.profile, {}) if key == "dataset" else self.given.get(key, {})
            if value not in source:
                raise ValueError(f"{place} is in the grid, but says nowhere what it stands for")
            entry = merged(entry, source[value] or {})
        for name in entry:
            if name not in KNOWN:
                raise ValueError(f"{place}: no {name!r}; there are {', '.join(KNOWN)}")
            check_value(entry[name], KNOWN[name], f"{place}: {name}")
        if "encode" in entry.get("params", {}):
            raise ValueError(f"{place}: params: encode is that of the repository's params.yaml, for all cells alike")
        params = merged(base, entry.get("params", {}))
        rest = {name: entry[name] for name in ("share",) if name in entry}
        rest["seconds"] = entry.get("seconds", Cell.seconds) * entry.get("slower", 1)
        tuning = [merged(params, change) for change in entry.get("tuning", []) if entry.get("tuned")]
        changes = entry.get("search", {})
        return Cell(
            self.name,
            self.profile,
            {key: keys[key] for key in self.grid},
            self.seeds,
            _stage.checked(params),
            _stage.checked(merged(params, changes)),
            entry.get("arms", ["searched", "uniform", "random"]),
            entry.get("budgets", [None]),
            alone=entry.get("field"),
            tuning=[(_stage.checked(one), _stage.checked(merged(one, changes))) for one in tuning],
            **rest,
        )

    def stage(self, kind: Literal["data", "cell", "report"]) -> dict[str, Any]:
        """What the study's dvc.yaml says of a kind of stage."""
        stages: dict[str, Any] = _yaml(self.folder / "dvc.yaml")["stages"]
        found: dict[str, Any] = stages[f"{kind}-{self.profile}"]
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


def _yaml(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = _stage.parsed(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}; correct it") from error
    return found
