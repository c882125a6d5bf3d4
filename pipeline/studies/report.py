"""The report of a study: its results, tables and figures; `sections` puts them on the page on all studies."""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from pipeline.metrics.difference import LEVEL
from pipeline.reporting import study_figures, style
from pipeline.studies import chained, contests, retrieval, tables
from pipeline.studies.comparisons import UNEQUAL, against_uniform, budget_text, covered, groups
from pipeline.studies.frames import Frames, Result
from pipeline.studies.grid import Cell, Study
from pipeline.studies.results import Results
from pipeline.workflow.outputs import whole, write_json, write_text

ABOUT = {
    "overall": "Every backbone and method, against one dimension for all fields and random dimensions of that size.",
    "components": "AD-1 shares one table between the candidate dimensions and pads with zeros. AD-2, the method "
    "itself, shares the table and maps linearly. AD-3 has separate tables and pads with zeros. AD-4 has separate "
    "tables and maps linearly. Single-level learns weights and architecture from the same batches. All are retrained "
    "with linear maps.",
    "schedule": "f is the number of weight steps for each architecture step. The temperature cools over the run, stays "
    "constant, or follows the paper. During the warm-up, a share of the steps, all candidates have the same weight.",
    "transfer": "Dimensions found with FM, used in other backbones.",
    "stability": "Agreement of the seeds: the mean correlation of the chosen dimensions over all pairs of seeds.",
    "case": "W&D trained on one field alone, at the full dimension, beside the dimension that the search chooses.",
    "budget": "One search, many budgets: the best choice within each budget, compared with one dimension for all "
    "fields and random dimensions of the same size. The profiles with all methods compare them within the same bytes.",
    "data": "The search reads a share of the rows; the retraining reads all of them.",
    "graph": "Graph models for retrieval, with references that learn no table. GTN clips at lambda; the linear filter "
    "is GTN without its clip, its necessary control. In the data sets with added edges, a share of the training rows "
    "is random, those of val among them.",
    "retrieval": "Two towers on a shop's log, by time: items are known by their content (id_free), by their identity "
    "(id_only), or by both. References learn no table.",
    "chain": "A simulation study of two agents for two pages (DeepChain). Each cell has worlds, logs and agents of its "
    "own; all agents of a seed know the same logged transitions. deepchain_knowing is DeepChain whose targets have the "
    "world's own chances in the place of a behaviour model.",
    "bytes": "What smaller tables cost models for retrieval.",
}
CONTEST = (
    "All methods within the same budget of bytes, which counts everything that serving needs. A method may stay below "
    "its budget, so it is compared with one dimension for all fields at the method's actual size. If a method stays "
    "below several budgets, the same model appears in several settings."
)
CORRECTED = (
    "p-values are Holm-corrected: in the standings and the claims for all tests of a data set, elsewhere for all tests "
    "of the table. There is no test where the nearest uniform dimension differs by more than "
    f"{UNEQUAL:.0%} in bytes. With many tests and few seeds, only large differences stay significant after "
    f'correction. The verdicts "{contests.HIGHER} {contests.UNCORRECTED}" and "{contests.LOWER} '
    f'{contests.UNCORRECTED}" mean that the p-value is below {contests.ALPHA} only before correction.'
)


@dataclass
class _Found:
    """The results of a study's cells, and the cells without a usable result.

    Args:
        results: by the name of the cell.
        unknown: cells whose kept result cannot be checked, because their encoded data are missing.
        missing: names of cells without a result.
    """

    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    unknown: list[Cell] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def write(study: Study, partial: bool = False) -> str:
    """Write ``results/<profile>/`` in the working directory, the study's folder: whole or not at all.

    The folder has the results (``cells/``), ``table.md``, ``table.csv`` and figures.

    Args:
        study: its definition.
        partial: report the cells that have results, even if others have none.

    Returns:
        The contents of ``table.md``.

    Raises:
        ValueError: if cells have no results, or the frames cannot be made; see `Frames.of`.
    """
    found = _find(study, partial)
    results = list(found.results.values())
    frames = Frames.of(study, results)
    contest = contests.is_contest(study)
    if chained.is_chain(study):
        made = chained.tables(results)
    elif retrieval.is_retrieval(study):
        made = retrieval.tables(study, frames, results)
    else:
        made = contests.tables(study, frames) if contest else tables.of_study(study, frames)
        made = chained.by_bytes(study, results) + made
    made += contests.tried(study, frames, results)
    about = _about(study, frames, found)
    text = "\n\n".join([f"# Study: {study.name}", *about, *(table.markdown() for table in made)])
    with whole(Path("results") / study.profile) as folder:
        _keep(study, found, folder / "cells")
        frames.details.to_csv(folder / "table.csv", index=False)
        write_text(folder / "table.md", text + "\n")
        for name, draw in _figures(study, frames, results):
            style.attempt(draw, folder / f"{name}.png")
    return text


def _find(study: Study, partial: bool) -> _Found:
    at, found = Results(study), _Found()
    for cell in study.cells():
        if result := at.find(cell):
            found.results[cell.name] = result
        elif at.unknown(cell):
            found.unknown.append(cell)
        else:
            found.missing.append(cell.name)
    if not found.results:
        raise ValueError(f"study {study.name}, profile {study.profile}, has no results yet; run it")
    without = [*found.missing, *(cell.name for cell in found.unknown)]
    if without and not partial:
        raise ValueError(
            f"study {study.name}, profile {study.profile}: cells {', '.join(without)} have no results yet; run the "
            "study, or report the others with --partial"
        )
    return found


def _keep(study: Study, found: _Found, folder: Path) -> None:
    """Copy the results. Those that cannot be checked are copied unchanged, since older code may have written them."""
    folder.mkdir(parents=True)
    for name, result in found.results.items():
        write_json(folder / f"{name}.json", result, indent=None)
    for cell in found.unknown:
        shutil.copyfile(Results(study).kept(cell), folder / f"{cell.name}.json")


def _about(study: Study, frames: Frames, found: _Found) -> list[str]:
    """Paragraphs on the study, on how to read its tables, and on the cells that are not in them."""
    contest = contests.is_contest(study)
    commits = sorted({result["commit"] for result in found.results.values()})
    seeds = ", ".join(map(str, study.seeds))
    read = f"Profile {study.profile}, seeds {seeds}; written on {datetime.date.today().isoformat()} from results of "
    read += f"commit {', '.join(commits)}. All figures are of one split of the data."
    if len(frames.rows):
        read += " They are means over the seeds ± the standard deviation. Differences are paired by seed."
    if contest:
        read += f" {CORRECTED}"
    paragraphs = [CONTEST if contest else ABOUT.get(study.name, ""), read]
    small = [
        f"{name} at {', '.join(budget_text(float(budget)) for budget in result['impossible'])}"
        for name, result in found.results.items()
        if result.get("impossible")
    ]
    if small:
        paragraphs.append(f"Budgets that are too small for a method: {'; '.join(small)}.")
    if found.missing:
        paragraphs.append(f"Cells without results yet: {', '.join(found.missing)}.")
    if found.unknown:
        names = ", ".join(cell.name for cell in found.unknown)
        paragraphs.append(
            f"Kept in cells/, but not in the tables: {names}. Their encoded data are missing, so these results "
            "cannot be checked."
        )
    return [paragraph for paragraph in paragraphs if paragraph]


# --- figures


def _figures(study: Study, frames: Frames, results: Sequence[Result]) -> Iterator[tuple[str, Callable[[], Figure]]]:
    """File name of each figure, and what draws it."""
    if chained.is_chain(study):
        yield from chained.figures(results).items()
        return
    if retrieval.is_retrieval(study):
        return
    if study.name in ("budget", "bytes"):
        yield from _curves(study, frames)
    if study.name != "budget" or contests.is_contest(study):
        yield from _differences(study, frames)


def _curves(study: Study, frames: Frames) -> Iterator[tuple[str, Callable[[], Figure]]]:
    """The curves of the objective against bytes: in a contest a figure for each data set, with a curve for each method;
    else a figure for each data set and method, with a curve for each arm."""
    keys, curve = (["dataset"], "method") if contests.is_contest(study) else (["dataset", "method"], "arm")
    for values, rows in frames.rows.groupby(keys, sort=False):
        points = {
            str(name): [
                (one["bytes"].mean(), one[frames.objective].tolist())
                for _, one in of_curve.groupby("budget", dropna=False)
            ]
            for name, of_curve in rows.groupby(curve, sort=False)
        }
        place = ", ".join(map(str, values))
        yield "-".join(["curve", *map(str, values)]), partial(study_figures.curves, points, place, frames.title)


def _differences(study: Study, frames: Frames) -> Iterator[tuple[str, Callable[[], Figure]]]:
    """Each searched group minus one uniform dimension of the same size; a contest has a figure for each data set."""
    grouped = groups(study, frames)
    contest = contests.is_contest(study)
    keys = ["method"] if contest else list(study.grid)
    parts: dict[str, dict[str, dict[str, study_figures.Interval]]] = {}
    shown = []
    for group, one in zip(grouped, against_uniform(study, frames, grouped), strict=True):
        if one is not None and one.fair:
            part = str(group.place["dataset"]) if contest else ""
            panel = f"budget {budget_text(group.place['budget'])}" if contest else ""
            name = ", ".join(str(group.place[key]) for key in keys)
            of_panel = parts.setdefault(part, {}).setdefault(panel, {})
            of_panel[name] = (one.difference.mean, one.difference.interval)
            shown.append(one.difference)
    for part, panels in parts.items():
        where = f", {part}" if part else ""
        axis = f"difference in {frames.title}"
        if covers := covered(shown):
            axis += f"; {LEVEL:.0%} intervals cover {covers}"
        title = f"Minus one dimension for all fields, of the same size{where}"
        draw = partial(study_figures.differences, panels, title, axis, ordered=contest)
        yield "-".join(["minus_uniform", *([part] if part else [])]), draw
