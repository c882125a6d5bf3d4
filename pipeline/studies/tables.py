"""The tables of a study that compares each search with its own controls; `contests` has those of many methods."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from pipeline.reporting import statistics
from pipeline.reporting.text import Table, mean_sd, p_value, with_interval
from pipeline.studies.comparisons import UNEQUAL, against_uniform, budget_text, groups, intervals
from pipeline.studies.frames import Frames
from pipeline.studies.grid import Study

PAPER_DATASET = "movielens_1m"  # data set of studies/case/paper.csv


def of_study(study: Study, frames: Frames) -> list[Table]:
    """All tables of a study; its name decides which ones.

    Args:
        study: its definition.
        frames: its results.
    """
    return [table for make in OF_STUDY.get(study.name, [main]) for table in make(study, frames)]


def main(study: Study, frames: Frames) -> list[Table]:
    """Test metrics and size of every arm, and the difference between the searched arm and one uniform dimension."""
    grouped = groups(study, frames)
    compared = against_uniform(study, frames, grouped)
    budgets = any(group.place["budget"] is not None for group in grouped)
    rows = []
    for group, one in zip(grouped, compared, strict=True):
        place = [str(group.place[key]) for key in study.grid]
        place += [budget_text(group.place["budget"])] if budgets else []
        figures = [mean_sd(group.rows[metric]) for metric in frames.shown]
        size = [
            f"{group.bytes:,.0f}",
            f"{group.rows['of_full'].mean():.1%}",
            f"{group.rows['table_params'].mean():,.0f}",
        ]
        beside = ["", "", ""]
        if one is not None:
            beside = [with_interval(one.difference), f"{one.size:.2f}", p_value(one.p_value)]
        rows.append([*place, group.place["arm"], *figures, *size, *beside])
    titles = [frames.metrics[metric] for metric in frames.shown]
    head = [*study.grid, *(["budget"] if budgets else []), "arm", *titles, "bytes", "of full", "table params"]
    head += [f"{frames.title} minus the nearest uniform", "bytes / its bytes", "p"]
    differences = [one.difference for one in compared if one is not None]
    note = intervals(differences)
    if any(one is not None and one.p_value is not None for one in compared):
        note += " p-values are Holm-corrected for all tests of the table."
    if any(one is not None and not one.fair for one in compared):
        note += f" There is no test where the nearest uniform dimension differs by more than {UNEQUAL:.0%} in bytes."
    return [Table("On the test rows", head, rows, note.strip())]


def ranks(study: Study, frames: Frames) -> list[Table]:
    """Average rank of the arms over data sets and backbones."""
    rows = frames.rows
    arms = [arm if arm == "full" else f"{arm}, {method}" for arm, method in zip(rows.arm, rows.method, strict=True)]
    by_setting = rows.assign(arm=arms).groupby(["dataset", "backbone", "arm"], sort=False)[frames.objective]
    means = by_setting.mean().unstack("arm").dropna()
    if len(means) < 2:
        return []
    average = statistics.average_ranks(means.to_numpy())
    lines = [[arm, f"{rank:.2f}"] for rank, arm in sorted(zip(average, means.columns, strict=True))]
    return [Table(f"Average rank by {frames.title} in {len(means)} settings", ["arm", "rank"], lines)]


def paper(study: Study, frames: Frames) -> list[Table]:
    """Our figures beside the paper's, for the paper's data sets."""
    file = study.folder.parent / "paper.csv"
    known = pd.read_csv(file) if file.exists() else pd.DataFrame()
    metrics = [name for name in frames.metrics if name in known]
    rows, lines = frames.rows, []
    for theirs in known.to_dict("records"):
        ours = rows[
            (rows["dataset"] == theirs["dataset"])
            & (rows["backbone"] == theirs["backbone"])
            & (rows["arm"] == theirs["method"])
            & ((rows["method"] == "autodim") | (theirs["method"] == "full"))
        ]
        if len(ours):
            own = [*(mean_sd(ours[name]) for name in metrics), f"{ours['table_params'].mean() / 1e6:.3f}"]
            of_paper = [*(f"{theirs[name]:.4f}" for name in metrics), f"{theirs['params_millions']:.3f}"]
            lines.append([theirs["dataset"], theirs["backbone"], theirs["method"], *own, *of_paper])
    titles = [*(frames.metrics[name] for name in metrics), "M params"]
    head = ["dataset", "backbone", "arm", *titles, *(f"paper's {title}" for title in titles)]
    return [Table("Beside the paper's figures, as a secondary source quotes them", head, lines)] if lines else []


def areas(study: Study, frames: Frames) -> list[Table]:
    """The mean height of each curve of the objective over bytes, from the largest first point to the full tables.

    After its last point a curve stays level, because a larger budget does not change a choice that does not use it.
    """
    rows = []
    keys = list(study.grid)
    for values, group in frames.rows.groupby(keys, sort=False):
        low = float(group.groupby(["arm", "seed"])["bytes"].min().max())
        high = float((group["bytes"] / group["of_full"]).max())
        covered = f"{low:,.0f} to {high:,.0f}" if low < high else "nothing in common"
        for arm, of_arm in group.groupby("arm", sort=False):
            seeds = [one for _, one in of_arm.groupby("seed")] if low < high else []
            heights = [statistics.mean_height(one["bytes"], one[frames.objective], low, high) for one in seeds]
            rows.append([*values, str(arm), mean_sd(heights) if heights else "", covered])
    title = f"Mean {frames.title} over the logarithm of bytes: the area under each curve as one number"
    return [Table(title, [*keys, "arm", f"mean {frames.title}", "bytes"], rows)]


def costs(study: Study, frames: Frames) -> list[Table]:
    """Time and memory of the searches, and the size of their choices."""
    rows = []
    for values, group in frames.searches.groupby(list(study.grid), sort=False):
        memory = group["peak_mib"].dropna()
        first = f"{memory.iloc[0]:,.0f}" if len(memory) else ""
        undecided = np.mean([len(fields) for fields in group["undecided"]])
        seconds = group["seconds"].dropna()  # of searches that were not interrupted
        took = mean_sd(seconds, 1) if len(seconds) else ""
        rows.append([*values, took, first, mean_sd(group["bytes"], 0), f"{undecided:.1f}"])
    head = [*study.grid, "seconds", "MiB, first seed", "bytes chosen", "fields undecided"]
    return [Table("The searches", head, rows)]


def stability(study: Study, frames: Frames) -> list[Table]:
    """Agreement of the dimensions that several seeds choose, as correlations."""
    rows = []
    for values, group in frames.searches.groupby(list(study.grid), sort=False):
        alike = statistics.agreement(_dims(group))
        shown = ["none" if alike[kind] is None else f"{alike[kind]:.2f}" for kind in ("pearson", "spearman")]
        rows.append([*values, str(len(group)), *shown, mean_sd(group["bytes"], 0)])
    head = [*study.grid, "seeds", "Pearson", "Spearman", "bytes"]
    return [Table("Agreement of the seeds (paper, Criteo: Pearson about .85)", head, rows)]


def choices(study: Study, frames: Frames) -> list[Table]:
    """The dimension that each seed chooses for each field, a table for each cell."""
    made = []
    for values, group in frames.searches.groupby(list(study.grid), sort=False):
        names = list(json.loads(group["dims"].iloc[0]))
        rows = [[name, *map(str, column)] for name, column in zip(names, _dims(group).T, strict=True)]
        head = ["field", *(f"seed {seed}" for seed in group["seed"])]
        made.append(Table(f"Dimensions chosen, {', '.join(values)}", head, rows))
    return made


def same_dims(study: Study, frames: Frames) -> list[Table]:
    """Agreement between the dimensions chosen from a share of the rows and from all rows, paired by seed."""
    lines = []
    for dataset, group in frames.searches.groupby("dataset", sort=False):
        complete = {row["seed"]: row for row in group[group["rows"] == "all"].to_dict("records")}
        for share, some in group.groupby("rows", sort=False):
            pairs = [(row, complete[row["seed"]]) for row in some.to_dict("records") if row["seed"] in complete]
            correlations, same = [], []
            for pair in pairs:
                a, b = (np.array(list(json.loads(row["dims"]).values()), dtype=float) for row in pair)
                spearman = statistics.agreement(np.stack([a, b]))["spearman"]
                correlations += [] if spearman is None else [spearman]
                same.append(float((a == b).mean()))
            if pairs:
                correlation = f"{np.mean(correlations):.2f}" if correlations else "none"
                lines.append([dataset, share, f"{np.mean(same):.0%}", correlation, _saved(pairs)])
    head = ["dataset", "rows", "fields with the same dimension", "Spearman", "search time saved"]
    return [Table("Dimensions from a share of the rows, beside those from all rows", head, lines)]


def _saved(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> str:
    """Share of the search time that the first search of each pair saves; empty if no pair has both durations."""
    seconds = np.array([[row["seconds"] for row in pair] for pair in pairs], dtype=float)
    known = seconds[~np.isnan(seconds).any(axis=1)].sum(0)
    return f"{1 - known[0] / known[1]:.0%}" if known.any() else ""


def case(study: Study, frames: Frames) -> list[Table]:
    """The metrics of each field alone, beside the dimension that the search chooses for it."""
    file = study.folder / "paper.csv"
    known = pd.read_csv(file).set_index("field") if file.exists() else pd.DataFrame()
    metrics = [name for name in frames.metrics if name in known]
    lines = []
    for dataset, group in frames.rows.groupby("dataset", sort=False):
        chosen = [json.loads(dims) for dims in frames.searches.query("dataset == @dataset")["dims"]]
        for field, one in group[group["arm"] == "alone"].groupby("field", sort=False):
            of_paper = ["" for _ in (*metrics, "dim")]
            if dataset == PAPER_DATASET and field in known.index:
                of_paper = [*(f"{known.loc[field, name]:.4f}" for name in metrics), f"{known.loc[field, 'dim']:.0f}"]
            dims = ", ".join(str(each[field]) for each in chosen)
            lines.append([dataset, field, *(mean_sd(one[name]) for name in frames.shown), dims, *of_paper])
        for arm, one in group[group["arm"] != "alone"].groupby("arm", sort=False):
            size = f"{one['of_full'].mean():.1%} of full"
            empty = ["" for _ in (*metrics, "dim")]
            lines.append([dataset, f"all, {arm}", *(mean_sd(one[name]) for name in frames.shown), size, *empty])
    alone = [f"{frames.metrics[name]} alone" for name in frames.shown]
    of_paper = [f"paper's {title}" for title in (*(frames.metrics[name] for name in metrics), "dimension")]
    head = ["dataset", "field", *alone, "dimension, by seed", *of_paper]
    return [Table("Each field alone, and the dimension that the search chooses", head, lines)]


def _dims(searches: pd.DataFrame) -> np.ndarray:
    """(searches, fields) dimensions."""
    return np.array([list(json.loads(dims).values()) for dims in searches["dims"]])


OF_STUDY: dict[str, list[Callable[[Study, Frames], list[Table]]]] = {
    "overall": [main, ranks, paper],
    "budget": [main, areas],
    "data": [main, same_dims, costs],
    "components": [main, costs],
    "schedule": [main, costs],
    "stability": [stability, choices],
    "case": [case],
}
