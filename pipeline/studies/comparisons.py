"""Comparisons of groups of models in a study: paired by seed, with an interval over seeds and test rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from pipeline.metrics.difference import LEVEL, SEEDS_ALONE, Difference, difference, sketched_variance
from pipeline.reporting.statistics import holm
from pipeline.studies.frames import Frames
from pipeline.studies.grid import Study

EQUAL = 0.02  # a control that is smaller by no more than this share still counts as no smaller
UNEQUAL = 0.2  # largest share of bytes by which a control may differ for a test; whole dimensions allow no less


@dataclass(frozen=True)
class Group:
    """Trained models that differ only in the seed.

    Args:
        place: their values in the grid, ``budget`` (None without a budget) and ``arm``.
        rows: their rows of `Frames.rows`, one for each seed, indexed by seed.
    """

    place: Mapping[str, Any]
    rows: pd.DataFrame

    @property
    def bytes(self) -> float:
        """Mean size over the seeds, in bytes."""
        return float(self.rows["bytes"].mean())


@dataclass(frozen=True)
class Comparison:
    """A group minus its control.

    Args:
        difference: of the objective.
        size: bytes of the group divided by the bytes of the control.
        control: the group that is subtracted.
        p_value: corrected for all tests of its table; None if there is no test.
    """

    difference: Difference
    size: float
    control: Group
    p_value: float | None = None

    @property
    def fair(self) -> bool:
        """Whether both are nearly equal in size, so that a test is allowed."""
        return near(self.size)


def near(size: float) -> bool:
    """Whether a ratio of bytes allows a test."""
    return abs(size - 1) <= UNEQUAL


def budget_text(budget: float | None) -> str:
    """ "25%" of the full tables' bytes, "12,345 bytes", or "none"."""
    if budget is None:
        return "none"
    return f"{100 * budget:.3g}%" if budget <= 1 else f"{budget:,.0f} bytes"


def groups(study: Study, frames: Frames) -> list[Group]:
    """All groups of a study, in the order of the grid.

    Args:
        study: its definition.
        frames: its results.
    """
    by = [*study.grid, "budget", "arm"]
    all_groups = []
    for values, rows in frames.rows.groupby(by, sort=False, dropna=False):
        place = dict(zip(by, values, strict=True))
        place["budget"] = None if pd.isna(place["budget"]) else place["budget"]
        once = rows.drop_duplicates("seed")  # a study may name a budget twice
        all_groups.append(Group(place, once.set_index("seed", drop=False).sort_index()))
    return all_groups


def averaged(pairs: Sequence[tuple[Group, Group]], objective: str) -> Difference | None:
    """The first group of each pair minus the second, paired by seed and averaged over the pairs.

    Args:
        pairs: groups of the same data set, which are tested on the same rows.
        objective: name of the metric to compare.

    Returns:
        The mean difference with its interval; None if the groups have no seed in common. If a model has no sketch, the
        interval covers only the seeds.
    """
    sides = [[pair[side].rows for pair in pairs] for side in (0, 1)]
    every = [rows for side in sides for rows in side]
    seeds = [seed for seed in every[0].index if all(seed in rows.index for rows in every)]
    if not seeds:
        return None
    a, b = ([rows.loc[seeds] for rows in side] for side in sides)
    figures = [np.mean([rows[objective] for rows in side], axis=0) for side in (a, b)]
    variance, tested = _row_variance(a, b)
    return difference(figures[0], figures[1], variance, tested, str(every[0]["test_unit"].iloc[0]))


def _row_variance(a: Sequence[pd.DataFrame], b: Sequence[pd.DataFrame]) -> tuple[float | None, int | None]:
    """Variance over the test rows, and their number; None if a sketch is missing or the numbers of rows differ."""
    sketches = [[sketch for rows in side for sketch in rows["sketch"]] for side in (a, b)]
    tested = pd.concat([rows["test_rows"] for rows in (*a, *b)]).unique()
    if len(tested) > 1 or any(sketch is None for side in sketches for sketch in side):
        return None, None
    return sketched_variance(*sketches), int(tested[0])


def against_uniform(
    study: Study, frames: Frames, grouped: Sequence[Group], family: Sequence[str] = ()
) -> list[Comparison | None]:
    """Compare each searched group with its control: one dimension for all fields, at the same size.

    Args:
        study: its definition.
        frames: its results.
        grouped: all groups, including the controls.
        family: keys of the place that the tests of one table share; p-values are corrected within a table.

    Returns:
        A comparison for each group; None for a group without a control.
    """
    compared: list[Comparison | None] = []
    for group in grouped:
        control = uniform_of(study, group, grouped)
        minus = None if control is None else averaged([(group, control)], frames.objective)
        if control is None or minus is None:
            compared.append(None)
        else:
            compared.append(Comparison(minus, group.bytes / control.bytes, control))
    tables: dict[tuple[str, ...], list[int]] = {}
    for number, group in enumerate(grouped):
        tables.setdefault(tuple(str(group.place[name]) for name in family), []).append(number)
    for numbers in tables.values():
        ones = [compared[number] for number in numbers]
        corrected = holm([one.difference.p_value if one and one.fair else None for one in ones])
        for number, one, p in zip(numbers, ones, corrected, strict=True):
            compared[number] = None if one is None else replace(one, p_value=p)
    return compared


def uniform_of(study: Study, group: Group, grouped: Sequence[Group]) -> Group | None:
    """The control of a searched group: one dimension for all fields, at the same size.

    The control is the arm ``uniform`` of the same cell. If the cell has none, it is the model of the method ``uniform``
    in the same setting whose bytes are nearest. Models that are no smaller than the group are preferred, if one of them
    is near enough for a test.

    Args:
        study: its definition.
        group: the searched group.
        grouped: all groups, including the controls.

    Returns:
        The control; None if there is none, or the group is not searched.
    """
    if group.place["arm"] != "searched" or group.place.get("method") == "uniform":
        return None
    own = {**group.place, "arm": "uniform"}
    for other in grouped:
        if other.place == own:
            return other
    setting = [key for key in study.grid if key != "method"]
    uniform = [
        other
        for other in grouped
        if (other.place.get("method"), other.place["arm"]) == ("uniform", "searched")
        and all(other.place[key] == group.place[key] for key in setting)
    ]
    sizes = [group.bytes / other.bytes for other in uniform]
    no_smaller = [n for n, size in enumerate(sizes) if 1 - UNEQUAL <= size <= 1 + EQUAL]
    nearest = min(no_smaller or range(len(sizes)), key=lambda n: abs(np.log(sizes[n])), default=None)
    return None if nearest is None else uniform[nearest]


def covered(differences: Iterable[Difference]) -> str:
    """A phrase for the coverage of the intervals, e.g. "seeds and test rows"; empty without intervals."""
    kinds = sorted({one.covers for one in differences if one.interval is not None}, key=SEEDS_ALONE.__eq__)
    where = " where it says so" if len(kinds) > 1 and SEEDS_ALONE in kinds else ""
    return ", or ".join(kinds) + where


def intervals(differences: Sequence[Difference]) -> str:
    """Sentences on the coverage of a table's intervals, and the reasons for missing ones; empty without differences."""
    said = []
    if covers := covered(differences):
        because = ": the results keep nothing about single test rows" if SEEDS_ALONE in covers else ""
        said.append(f"{LEVEL:.0%} intervals cover {covers}{because}.")
    missing = [one for one in differences if one.interval is None]
    if reasons := dict.fromkeys(one.covers.partition(": ")[2] for one in missing):
        which = "Some differences have" if len(missing) < len(differences) else "There is"
        said.append(f"{which} no interval: {', or '.join(reasons)}.")
    return " ".join(said)
