"""The report of a sweep: a table of trials, the best trial's parameters, figures, and a page that shows everything."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline.reporting import page, style, sweep_figures
from pipeline.reporting.text import number_of
from pipeline.sweeps import space as spaces
from pipeline.sweeps.sweep import Sweep

Row = Mapping[str, Any]  # one trial: trial, ended, objective, bytes, of_full, dims, best, values; None if unknown
FIGURES = {
    "front": "{title} on val against bytes, a dot for each trial",
    "history": "Trial by trial",
    "importances": "Importance of the parameters",
}


def chosen(rows: Sequence[Row]) -> Row | None:
    """The best trial; on a front of several, the one with the best objective. None if no trial is complete.

    Args:
        rows: of all trials; see `Sweep.rows`.
    """
    return max((row for row in rows if row["best"]), key=lambda row: row["objective"], default=None)


def write(folder: Path, sweep: Sweep, rows: Sequence[Row], importances: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Write the report into a new folder.

    Args:
        folder: the folder to create.
        sweep: the sweep of these trials.
        rows: of all trials; see `Sweep.rows`.
        importances: share of each parameter, for each measured quantity; see `Sweep.importances`.

    Returns:
        The lines to print.
    """
    folder.mkdir()
    _write_csv(folder / "trials.csv", rows, sweep.experiment({}).schema.names)
    drawn = folder / "figures"
    style.attempt(lambda: sweep_figures.sweep_front(rows, sweep.title, sweep.budget), drawn / "front.png")
    style.attempt(lambda: sweep_figures.sweep_history(rows, sweep.title), drawn / "history.png")
    if importances:
        style.attempt(lambda: sweep_figures.importances(importances), drawn / "importances.png")
    values = {row["trial"]: {path: row["values"][".".join(path)] for path in sweep.space} for row in rows}
    commands = {row["trial"]: spaces.command(sweep.values_now, values[row["trial"]]) for row in rows if row["best"]}
    (folder / "sweep.html").write_text(_html(sweep, rows, drawn, commands))
    best = chosen(rows)
    if best is None:
        within = "" if sweep.budget is None else f" within the budget of {sweep.budget:,} bytes"
        remedy = "widen sweep.space in params.yaml"
        if sweep.budget is not None:
            remedy += ", or set derive.budget to this size, so that every derivation keeps it"
        return [f"sweep: {number_of(len(rows), 'trial')}, none complete{within}; {remedy}"]
    said = f"trial {best['trial']}: val {sweep.title} {best['objective']:.4f}, {best['bytes']:,} bytes, "
    said += f"{best['of_full']:.1%} of the full tables'"
    seed = sweep.params.retrain.seeds[0]
    head = f"# The best of {sweep.name}, {said}. This command repeats its seed {seed}:\n"
    patched = yaml.safe_dump(spaces.patch(sweep.values_now, values[best["trial"]]), sort_keys=False)
    (folder / "best.yaml").write_text(f"{head}# {commands[best['trial']]}\n{patched}")
    others = sum(row["best"] for row in rows) - 1
    front = f"; {others} smaller on the front, see artifacts/sweep/sweep.html" if others else ""
    return [f"sweep: the best is {said}{front}. This makes it again:", commands[best["trial"]]]


def _write_csv(path: Path, rows: Sequence[Row], fields: Sequence[str]) -> None:
    names = list(rows[0]["values"])
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        own = ["trial", "ended", "val_objective", "bytes", "of_full", "best"]
        writer.writerow([*own, *names, *(f"dim.{field}" for field in fields)])
        for row in rows:
            objective = "" if row["objective"] is None else repr(row["objective"])
            size = ["", ""] if row["bytes"] is None else [row["bytes"], f"{row['of_full']:.6f}"]
            values = [row["values"][name] for name in names]
            dims = [row["dims"].get(field, "") for field in fields]
            writer.writerow([row["trial"], row["ended"], objective, *size, int(row["best"]), *values, *dims])


def _html(sweep: Sweep, rows: Sequence[Row], drawn: Path, commands: Mapping[int, str]) -> str:
    ended = Counter(row["ended"] for row in rows)
    counts = ", ".join(f"{number} {kind}" for kind, number in sorted(ended.items()))
    aim = f"best {sweep.title} on val, fewest bytes"
    if sweep.budget is not None:
        aim = f"best {sweep.title} on val within {sweep.budget:,} bytes"
    about = f"{number_of(len(rows), 'trial')} ({counts}). Aim: {aim}. The test rows were not used."
    sections = []
    best = sorted((row for row in rows if row["best"]), key=lambda row: row["bytes"])
    if best:
        title = "The best trial" if len(best) == 1 else "The trials on the Pareto front"
        sections.append(page.Section(title, [page.table(*_table(best, sweep.title))]))
    for stem, title in FIGURES.items():
        if (drawn / f"{stem}.svg").exists():
            shown = title.format(title=sweep.title)
            sections.append(page.Section(shown, [page.image(drawn / f"{stem}.svg", shown)]))
    sections.append(page.Section("All trials", [page.table(*_table(rows, sweep.title))]))
    if best:
        repeat = []
        for row in best:
            dims = ", ".join(f"{field} {d}" for field, d in row["dims"].items())
            repeat += [page.paragraph(f"Trial {row['trial']}, dimensions {dims}:"), page.code(commands[row["trial"]])]
        sections.append(page.Section("Commands that repeat them, with controls and the test rows", repeat))
    return page.page(f"Sweep {sweep.name}", sections, [page.paragraph(about)])


def _table(rows: Sequence[Row], title: str) -> tuple[list[str], list[list[str]]]:
    names = list(rows[0]["values"])
    cells = [
        [
            str(row["trial"]),
            row["ended"],
            "" if row["objective"] is None else f"{row['objective']:.4f}",
            *(["", ""] if row["bytes"] is None else [f"{row['bytes']:,}", f"{row['of_full']:.1%}"]),
            *(str(row["values"][name]) for name in names),
        ]
        for row in rows
    ]
    return ["trial", "ended", f"val {title}", "bytes", "of full", *names], cells
