"""What a sweep leaves: a table, the best trial's parameters, figures, and one page that shows it all."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from stages import _page, _space

Row = Mapping[str, Any]
FIGURES = {
    "front": "AUC on val against bytes, a dot for each trial",
    "history": "Trial by trial",
    "importances": "What decides",
}


def chosen(rows: Sequence[Row]) -> Row | None:
    """The best trial, of several on a front the one with the highest AUC; None if none came to its end."""
    return max((row for row in rows if row["best"]), key=lambda row: row["val_auc"], default=None)


def write(
    folder: Path,
    name: str,
    params: Mapping[str, Any],
    space: _space.Space,
    rows: Sequence[Row],
    importances: Mapping[str, Mapping[str, float]],
    budget: int | None,
) -> list[str]:
    """Write all of it into a new folder.

    Args:
        rows: of every trial ``trial``, ``ended``, ``val_auc`` (or None), ``bytes``, ``of_full``, ``dims``, ``best``
            and ``values``, the searched parameters by name.
        importances: share of each parameter, by what it decides.
        budget: bytes, if there is one.
    Returns:
        What is to be printed.
    """
    from pipeline.reporting import figures

    folder.mkdir()
    names = list(rows[0]["values"])
    with (folder / "trials.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        fields = list(rows[0]["dims"])
        own = ["trial", "ended", "val_auc", "bytes", "of_full", "best"]
        writer.writerow([*own, *names, *(f"dim.{field}" for field in fields)])
        for row in rows:
            auc = "" if row["val_auc"] is None else repr(row["val_auc"])
            cells = [row["trial"], row["ended"], auc, row["bytes"], f"{row['of_full']:.6f}", int(row["best"])]
            values = [row["values"][name] for name in names]
            writer.writerow([*cells, *values, *(row["dims"][field] for field in fields)])
    drawn = folder / "figures"
    figures.save(figures.sweep_front(rows, budget), drawn / "front.png")
    figures.save(figures.sweep_history(rows), drawn / "history.png")
    if importances:
        figures.save(figures.importances(importances), drawn / "importances.png")
    best = chosen(rows)
    aim = "" if budget is None else f" within the budget of {budget:,} bytes"
    lines = [f"sweep: none of {len(rows)} trials came to its end{aim}; widen sweep.space in params.yaml"]
    commands = {row["trial"]: _space.command(params, _by_place(space, row)) for row in rows if row["best"]}
    if best is not None:
        said = f"trial {best['trial']}: val AUC {best['val_auc']:.4f}, {best['bytes']:,} bytes, {best['of_full']:.1%}"
        seed = params["retrain"]["seeds"][0]
        head = f"# The best of {name}, {said} of the full tables'; its seed-{seed} comes again with\n"
        patched = yaml.safe_dump(_space.patch(params, _by_place(space, best)), sort_keys=False)
        (folder / "best.yaml").write_text(f"{head}# {commands[best['trial']]}\n{patched}")
        others = sum(row["best"] for row in rows) - 1
        front = f"; {others} smaller on the front, in artifacts/sweep/sweep.html" if others else ""
        lines = [f"sweep: best is {said} of the full tables'{front}; again:", commands[best["trial"]]]
    (folder / "sweep.html").write_text(_html(name, rows, drawn, commands, budget))
    return lines


def _by_place(space: _space.Space, row: Row) -> dict[_space.Path, Any]:
    return {path: row["values"][".".join(path)] for path in space}


def _html(name: str, rows: Sequence[Row], drawn: Path, commands: Mapping[int, str], budget: int | None) -> str:
    ended = Counter(row["ended"] for row in rows)
    counts = ", ".join(f"{number} {kind}" for kind, number in sorted(ended.items()))
    aim = "highest AUC on val, fewest bytes" if budget is None else f"highest AUC on val within {budget:,} bytes"
    body = [_page.paragraph(f"{len(rows)} trials ({counts}). Aim: {aim}. The test rows were not opened.")]
    best = sorted((row for row in rows if row["best"]), key=lambda row: row["bytes"])
    if best:
        body.append(_page.heading("The best trial" if len(best) == 1 else "The trials that none surpasses"))
        body.append(_page.table(*_table(best)))
    for stem, title in FIGURES.items():
        if (drawn / f"{stem}.svg").exists():
            body += [_page.heading(title), _page.image(drawn / f"{stem}.svg", title)]
    body += [_page.heading("All trials"), _page.table(*_table(rows))]
    if best:
        body.append(_page.heading("Again, with controls and the test rows"))
    for row in best:
        dims = ", ".join(f"{field} {d}" for field, d in row["dims"].items())
        body.append(_page.paragraph(f"Trial {row['trial']}, of the dimensions {dims}:"))
        body.append(_page.code(commands[row["trial"]]))
    return _page.page(f"Sweep {name}", body)


def _table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    names = list(rows[0]["values"])
    cells = [
        [
            str(row["trial"]),
            row["ended"],
            "" if row["val_auc"] is None else f"{row['val_auc']:.4f}",
            f"{row['bytes']:,}",
            f"{row['of_full']:.1%}",
            *(str(row["values"][name]) for name in names),
        ]
        for row in rows
    ]
    return ["trial", "ended", "val AUC", "bytes", "of full", *names], cells
