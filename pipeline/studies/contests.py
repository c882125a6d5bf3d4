"""The tables of a study of many methods: standings, published claims, and one table for each setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pipeline.metrics.difference import Difference
from pipeline.reporting import statistics
from pipeline.reporting.text import Table, mean_sd, p_value, with_interval
from pipeline.studies.comparisons import (
    Comparison,
    Group,
    against_uniform,
    averaged,
    budget_text,
    groups,
    intervals,
    near,
)
from pipeline.studies.frames import Frames, Result
from pipeline.studies.grid import Study

CONTEST = 4  # a study with more methods than this ranks them
ALPHA = 0.05
MARGIN = 0.002  # of the objective; on data of this size it is within the noise of the seeds

HIGHER, LOWER = "higher", "lower"
UNCORRECTED = "before correction"
UNDECIDED = "no difference shown"
UNLIKE = "sizes differ"
UNTESTED = "no test"
VERDICTS = [HIGHER, f"{HIGHER} {UNCORRECTED}", UNDECIDED, f"{LOWER} {UNCORRECTED}", LOWER, UNLIKE]

NO_LOSS, GAIN = ">=", ">"  # signs of a claim


def is_contest(study: Study) -> bool:
    """Whether a study has more than `CONTEST` methods, so that its tables rank them."""
    return len(study.grid.get("method", [])) > CONTEST


def tables(study: Study, frames: Frames) -> list[Table]:
    """The standings, the claims, and a table for each setting and budget.

    Args:
        study: its definition.
        frames: its results.
    """
    contest = _Contest(study, frames)
    return [*contest.standings(), *claims(study, frames), *contest.settings()]


class _Contest:
    """All groups of a study with their controls. p-values are corrected within each setting and budget."""

    def __init__(self, study: Study, frames: Frames) -> None:
        self.frames = frames
        self.setting = [key for key in study.grid if key != "method"]
        grouped = groups(study, frames)
        compared = against_uniform(study, frames, grouped, [*self.setting, "budget"])
        self.compared = list(zip(grouped, compared, strict=True))

    def settings(self) -> list[Table]:
        """A table for each setting and budget: all methods, the best first, with their size and costs."""
        found: dict[tuple[str, ...], list[tuple[Group, Comparison | None]]] = {}
        for group, one in self.compared:
            found.setdefault(self._place(group), []).append((group, one))
        titled: dict[str, list[tuple[Group, Comparison | None]]] = {}
        for (*names, budget), ones in found.items():
            control = all(group.place["method"] == "uniform" for group, _ in ones)  # sizes that no other method has
            size = "other sizes" if control else "no budget" if budget == "none" else f"budget {budget}"
            titled.setdefault(", ".join([*names, size]), []).extend(ones)
        return [self._setting(title, ones) for title, ones in titled.items()]

    def _setting(self, title: str, ones: Sequence[tuple[Group, Comparison | None]]) -> Table:
        objective, metrics = self.frames.objective, self.frames.metrics
        ordered = sorted(ones, key=lambda pair: -pair[0].rows[objective].mean())
        titles = [metrics[metric] for metric in self.frames.shown]
        head = ["method", *titles, "bytes", "of full", "whole model", f"{self.frames.title} minus the nearest uniform"]
        head += ["bytes / its bytes", "p", "verdict", "MiB in training", "seconds of training", "seconds of search"]
        lines = [self._line(group, one) for group, one in ordered]
        return Table(title, head, lines, intervals([one.difference for _, one in ones if one is not None]))

    def _line(self, group: Group, one: Comparison | None) -> list[str]:
        rows = group.rows
        beside = ["", "", "", ""]
        if one is not None:
            beside = [with_interval(one.difference), f"{one.size:.2f}", p_value(one.p_value), verdict(one)]
        sizes = rows["bytes"] if rows["bytes"].nunique() > 1 else rows["bytes"][:1]
        took = [rows[name].dropna() for name in ("seconds", "search_seconds")]
        return [
            str(group.place["method"]),
            *(mean_sd(rows[metric]) for metric in self.frames.shown),
            mean_sd(sizes, 0),
            f"{rows['of_full'].mean():.1%}",
            "" if rows["model_bytes"].isna().any() else f"{rows['model_bytes'].mean():,.0f}",
            *beside,
            f"{rows['training_bytes'].mean() / 2**20:,.1f}",
            *(mean_sd(seconds, 0) if len(seconds) else "" for seconds in took),
        ]

    def standings(self) -> list[Table]:
        """The rank, the mean difference and the verdicts of every method, over all settings and budgets.

        The mean difference is averaged over the settings of a data set, paired by seed. Its p-values are corrected for
        all methods of the table.
        """
        figures: dict[str, dict[tuple[str, ...], float]] = {}
        verdicts: dict[str, list[str]] = {}
        for group, one in self.compared:
            if group.place["arm"] == "searched":
                method = str(group.place["method"])
                figures.setdefault(method, {})[self._place(group)] = group.rows[self.frames.objective].mean()
                if one is not None:
                    verdicts.setdefault(method, []).append(verdict(one))
        places = sorted({place for method in verdicts for place in figures[method]})  # `uniform` has more budgets
        if not places:
            return []
        ranks = _ranks(figures, places)
        means = {dataset: self._means(dataset) for dataset in dict.fromkeys(self.frames.rows["dataset"])}
        kinds = [*VERDICTS, *([UNTESTED] if any(UNTESTED in of_method for of_method in verdicts.values()) else [])]
        lines = []
        for method in sorted(figures, key=lambda name: ranks.get(name, np.inf)):
            beside = [cell for of_dataset in means.values() for cell in _cells(of_dataset.get(method))]
            counts = [str(verdicts[method].count(kind)) if method in verdicts else "" for kind in kinds]
            lines.append([method, f"{ranks[method]:.1f}" if method in ranks else "", *beside, *counts])
        heads = [f"{what}, {dataset}" for dataset in means for what in ("mean difference", "p")]
        where = f"{len(places)} setting{'s' * (len(places) != 1)}"
        title = f"All methods in {where}: average rank by {self.frames.title}, mean difference from one dimension of "
        title += "the same size, and verdicts"
        note = intervals([minus for of_dataset in means.values() for minus, _ in of_dataset.values()])
        return [Table(title, ["method", "average rank", *heads, *kinds], lines, note)]

    def _means(self, dataset: str) -> dict[str, tuple[Difference, float | None]]:
        """Each method's mean difference on a data set, over settings of nearly equal sizes, and its corrected p."""
        pairs: dict[str, list[tuple[Group, Group]]] = {}
        for group, one in self.compared:
            if one is not None and one.fair and group.place["dataset"] == dataset:
                pairs.setdefault(str(group.place["method"]), []).append((group, one.control))
        means = {method: averaged(ones, self.frames.objective) for method, ones in pairs.items()}
        known = {method: minus for method, minus in means.items() if minus is not None}
        corrected = statistics.holm([minus.p_value for minus in known.values()])
        return {method: (minus, p) for (method, minus), p in zip(known.items(), corrected, strict=True)}

    def _place(self, group: Group) -> tuple[str, ...]:
        return (*(str(group.place[name]) for name in self.setting), budget_text(group.place["budget"]))


def verdict(one: Comparison) -> str:
    """The verdict on a comparison: one of `VERDICTS`, or `UNTESTED`."""
    if not one.fair:
        return UNLIKE
    if one.p_value is None or one.difference.p_value is None:
        return UNTESTED
    direction = HIGHER if one.difference.mean > 0 else LOWER
    if one.p_value < ALPHA:
        return direction
    return f"{direction} {UNCORRECTED}" if one.difference.p_value < ALPHA else UNDECIDED


def _cells(tested: tuple[Difference, float | None] | None) -> list[str]:
    return ["", ""] if tested is None else [with_interval(tested[0]), p_value(tested[1])]


def _ranks(
    figures: Mapping[str, Mapping[tuple[str, ...], float]], places: Sequence[tuple[str, ...]]
) -> dict[str, float]:
    """Average rank of each method that has a result at all places."""
    complete = [method for method, of_method in figures.items() if set(places) <= of_method.keys()]
    if not complete:
        return {}
    scores = np.array([[figures[method][place] for method in complete] for place in places])
    return dict(zip(complete, statistics.average_ranks(scores).tolist(), strict=True))


# --- claims


@dataclass(frozen=True)
class _Test:
    """The test of a claim on one data set."""

    difference: Difference
    budgets: str


def claims(study: Study, frames: Frames) -> list[Table]:
    """The table of the claims in ``claims.csv``, each of which compares two methods; empty without that file.

    The sign ``>`` claims a higher objective, averaged over the budgets at which both methods have nearly the same size.
    Its p-values are corrected for all claims of a data set. The sign ``>=`` compares with full tables: at the largest
    budget the objective is lower by no more than `MARGIN`, judged by the interval.

    Args:
        study: its definition.
        frames: its results.
    """
    file = study.folder / "claims.csv"
    if not file.exists():
        return []
    listed = pd.read_csv(file, keep_default_na=False).to_dict("records")
    grouped = groups(study, frames)
    lines = [[each["source"], each["claim"], f"{each['method']} {each['sign']} {each['against']}"] for each in listed]
    datasets = list(dict.fromkeys(str(name) for name in frames.rows["dataset"]))
    differences: list[Difference] = []
    for dataset in datasets:
        by_method = {
            method: [group for group in grouped if group.place["dataset"] == dataset and _is_of(group, method)]
            for method in {each[side] for each in listed for side in ("method", "against")}
        }
        tests = [_test(by_method[each["method"]], by_method[each["against"]], each["sign"], frames) for each in listed]
        gains = [test is not None and each["sign"] == GAIN for each, test in zip(listed, tests, strict=True)]
        p_values = [test.difference.p_value if test and gain else None for test, gain in zip(tests, gains, strict=True)]
        for line, each, test, p in zip(lines, listed, tests, statistics.holm(p_values), strict=True):
            if test is None:
                both = by_method[each["method"]] and by_method[each["against"]]
                line += ["", "", "", UNLIKE if both else ""]
            else:
                differences.append(test.difference)
                line += [
                    with_interval(test.difference),
                    test.budgets,
                    p_value(p),
                    upheld(each["sign"], test.difference, p),
                ]
    columns = ("difference", "budgets", "p", "verdict")
    head = ["source", "claim", "tested", *(f"{name}, {dataset}" for dataset in datasets for name in columns)]
    note = f"{GAIN} claims a higher {frames.title}. {NO_LOSS} claims a loss of at most {MARGIN}; the interval "
    note += f"decides. {intervals(differences)}"
    return [Table("Claims, with their sources", head, lines, note.strip())]


def _is_of(group: Group, method: str) -> bool:
    """Whether a group belongs to the method itself, and is not one of its controls."""
    return bool(group.place["method"] == method and group.place["arm"] == ("full" if method == "full" else "searched"))


def _test(one: Sequence[Group], other: Sequence[Group], sign: str, frames: Frames) -> _Test | None:
    """The test of a claim; None if a method is missing, or no two models have nearly the same size.

    Args:
        one, other: all groups of the two methods.
        sign: of the claim.
        frames: the results of the study.
    """

    def place(group: Group, *without: str) -> dict[str, Any]:
        return {key: value for key, value in group.place.items() if key not in ("method", "arm", *without)}

    if sign == NO_LOSS:  # beside full tables, which have no budget
        budgets = [group.place["budget"] for group in one if group.place["budget"] is not None]
        largest = [group for group in one if group.place["budget"] == max(budgets, default=None)]
        pairs = [(a, b) for a in largest for b in other if place(a, "budget") == place(b, "budget")]
    else:
        pairs = [(a, b) for a in one for b in other if place(a) == place(b) and near(a.bytes / b.bytes)]
    minus = averaged(pairs, frames.objective) if pairs else None
    if minus is None:
        return None
    return _Test(minus, ", ".join(dict.fromkeys(budget_text(a.place["budget"]) for a, _ in pairs)))


def upheld(sign: str, difference: Difference, corrected: float | None) -> str:
    """The verdict on a claim: "supported", "contradicted", "undecided", or `UNTESTED`.

    Args:
        sign: of the claim.
        difference: of the objective, with its interval.
        corrected: corrected p-value of a claim of a gain; None for other claims.
    """
    if difference.interval is None:
        return UNTESTED
    low, high = difference.interval
    if sign == NO_LOSS:
        return "supported" if low > -MARGIN else "contradicted" if high < -MARGIN else "undecided"
    if corrected is None or corrected >= ALPHA:
        return "undecided"
    return "supported" if difference.mean > 0 else "contradicted"


# --- settings tried


def tried(study: Study, frames: Frames, results: Sequence[Result]) -> list[Table]:
    """The objective on ``val`` of each setting that was tried before the test; no table if none was tried.

    Args:
        study: its definition.
        frames: its results, for the title of the objective.
        results: of the cells.
    """
    lines = []
    for result in results:
        by_budget: dict[str, list[str]] = {}
        for trial in result["tried"]:
            figure = "over the budget" if trial["objective"] is None else f"{trial['objective']:.4f}"
            by_budget.setdefault(budget_text(trial["budget"]), []).append(figure)
        lines += [[*result["keys"].values(), budget, ", ".join(figures)] for budget, figures in by_budget.items()]
    head = [*study.grid, "budget", f"{frames.title} on val of each setting, in the order of params.yaml"]
    return [Table("Settings tried; the best of each budget is kept", head, lines)] if lines else []
