"""Coded tables and their rivals at the scale of Criteo: planted clicks on a million values, most of them rare.

Makes a log (`benchmarks.criteo_planted`), encodes it with all values that occur twice in training, and again with only
those that occur ten times, and trains a model for every method and size. Every piece of the work runs in a process of
its own and leaves a file in the folder, so a killed run continues where it was when the same command is given again.
At the end, and with ``--show`` at any time, it prints a table of the finished pieces.

    python -m benchmarks.scale --folder ../scale --rows 4000000

All models have the same backbone. The default has no first-order weights, so equal bytes of tables are equal bytes of
everything that grows with the number of values. Every model is trained for one epoch, then rounded or coded, and then
trained for a second epoch in the form that is served, with the learning rate that is best on ``val``, or not at all if
none improves it. The learning rate of the first training is chosen for each method on ``val``. No result on ``test``
influences a choice.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.alone import alone
from benchmarks.scale_pieces import MIN_COUNTS, TUNED, Piece, Settings, pieces, result, work
from pipeline.metrics.difference import decoded, sketched_variance
from pipeline.reporting.text import table
from pipeline.workflow.outputs import write_json, write_text

TOLERANCE = 0.0005  # of AUC on val: the smallest float32 tables that lose less are V* x D*


def jobs(settings: Settings) -> dict[str, tuple[str, ...]]:
    """All work, in order: name of its result -> the job and its arguments."""
    listed: dict[str, tuple[str, ...]] = {"log": ("log",)}
    listed |= {f"encoded-{name}": ("encoded", name) for name in MIN_COUNTS}
    listed |= {f"rate-{method}-{rate:g}": ("rate", method, f"{rate:g}") for method in TUNED for rate in settings.rates}
    listed |= {piece.name: ("piece", piece.name) for piece in pieces(settings.dim)[:1]}
    first = [piece for piece in pieces(settings.dim) if piece.method == "coded"]
    listed |= {piece.name: ("piece", piece.name) for piece in first} | {"search-mpe": ("search",)}
    return listed | {piece.name: ("piece", piece.name) for piece in pieces(settings.dim)}


def run(folder: Path, call: Callable[..., Any] = alone) -> None:
    """Do all work that is not done yet.

    Args:
        folder: of the run, with its settings.
        call: calls a function with arguments, in a process of its own.
    """
    for name, (job, *arguments) in jobs(Settings.load(folder)).items():
        if (folder / "done" / f"{name}.json").exists():
            continue
        resumed = any((folder / "work").glob(f"{name}.*"))
        began = time.monotonic()
        print(f"{time.strftime('%H:%M:%S')} {name}", file=sys.stderr, flush=True)
        done = call(work, str(folder), job, *arguments)
        if resumed:
            done["seconds"] = None  # those of the killed process are not known
        write_json(folder / "done" / f"{name}.json", {**done, "elapsed": time.monotonic() - began})


# --- the tables


def title(piece: Piece) -> str:
    """The name of a model in the tables."""
    method = "float32" if piece.method in ("full", "uniform") else piece.method
    known = f", values seen {MIN_COUNTS['frequent']} times" if piece.vocabulary == "frequent" else ""
    size = f", d = {piece.width}" if piece.share is None else f", {piece.share:.1%}"
    return ("full" if piece.method == "full" else method + known) + size


def finished(folder: Path) -> dict[Piece, dict[str, Any]]:
    """The results of the pieces that are finished, in the order of the table."""
    listed = pieces(Settings.load(folder).dim)
    return {piece: result(folder, piece.name) for piece in listed if (folder / f"done/{piece.name}.json").exists()}


def tested(folder: Path) -> dict[Piece, dict[str, Any]]:
    """Those of `finished` that fit their bytes."""
    return {piece: of_piece for piece, of_piece in finished(folder).items() if "problem" not in of_piece}


def report(folder: Path) -> str:
    """The log, and tables of the models that are tested so far."""
    settings = Settings.load(folder)
    log, known, frequent = (result(folder, name) for name in ("log", "encoded-all", "encoded-frequent"))
    parts = [
        f"{settings.rows:,} rows, {log['click_rate']:.1%} of them clicked. {log['values']:,} values: "
        f"{log['twice']:.1%} of them occur twice, {log['ten_times']:.1%} ten times, and these make "
        f"{log['of_ten_times']:.1%} of the occurrences; {log['half']:,} make half of them; six fields have "
        f"{log['six_fields']:.1%} of the values. {known['ids']:,} ids are known from training, "
        f"{frequent['ids']:,} of values that occur ten times there. The best possible AUC on test is "
        f"{known['best_auc']:.4f}. {settings.backbone}, D = {settings.dim}, one seed ({settings.seed}).",
        _sizes(finished(folder)),
        "± is half an interval of 95 % that covers the choice of the test rows alone. s are seconds of a processor, "
        "with the second training and the test; a coded model also takes the training of the full one"
        f"{_search(folder)}. MiB is the peak memory of the process.",
    ]
    if any(piece.method == "full" for piece in tested(folder)):
        parts.append(
            _ratios(tested(folder), settings, log["values"], {"all": known["ids"], "frequent": frequent["ids"]})
        )
    return "\n\n".join(parts)


def _search(folder: Path) -> str:
    """What the search of MPE took, as a part of a sentence; empty if it is not finished."""
    if not (folder / "done/search-mpe.json").exists():
        return ""
    seconds = result(folder, "search-mpe")["seconds"]
    return ", and mpe a search" + ("" if seconds is None else f" of {seconds:.0f} s for all sizes")


def _sizes(done: Mapping[Piece, Mapping[str, Any]]) -> str:
    """AUC and costs of each model; the AUC minus that of the full model has an interval for the test rows alone."""
    head = ["model", "bytes", "of full", "whole model", "test AUC", "minus full", "not trained after"]
    head += ["second rate", "s", "MiB"]
    full = next((of_piece for piece, of_piece in done.items() if piece.method == "full"), None)
    rows = []
    for piece, of_piece in done.items():
        if "problem" in of_piece:
            rows.append([title(piece), *["–"] * (len(head) - 1)])
            continue
        share = minus = "–"
        if full is not None:
            share = f"{of_piece['bytes'] / full['bytes']:.2%}"
        if full is not None and of_piece is not full:
            half = 1.96 * sketched_variance([decoded(of_piece["sketch"])], [decoded(full["sketch"])]) ** 0.5
            minus = f"{of_piece['test'] - full['test']:+.4f} ± {half:.4f}"
        before, second = f"{of_piece['before']:.4f}", of_piece["second"]
        seconds = "–" if of_piece["seconds"] is None else f"{of_piece['seconds']:.0f}"
        rows.append(
            [
                *(title(piece), f"{of_piece['bytes']:,}", share, f"{of_piece['model_bytes']:,}"),
                *(f"{of_piece['test']:.4f}", minus, before, "–" if second is None else f"{second:g}"),
                *(seconds, f"{of_piece['peak_mib']:.0f}"),
            ]
        )
    return table(head, rows)


def _ratios(models: Mapping[Piece, Mapping[str, Any]], settings: Settings, values: int, ids: Mapping[str, int]) -> str:
    """R = (V / V*) (D / D*) (V* / V+) (32 D* / bits of a row) of each model: how often all values of the log in float32
    are as large. V* values in float32 of dimension D* are the smallest such tables whose AUC on ``val`` is less than
    `TOLERANCE` below that of the full model; V+ rows have bits. Only the last two factors are the method's."""
    plain = {piece: of_piece for piece, of_piece in models.items() if piece.method in ("full", "uniform")}
    least = next(of_piece["val"] for piece, of_piece in plain.items() if piece.method == "full") - TOLERANCE
    fair = min((piece for piece in plain if plain[piece]["val"] >= least), key=lambda piece: plain[piece]["bytes"])
    of_fair, dim = ids[fair.vocabulary], fair.width or settings.dim
    rows = []
    for piece, of_piece in models.items():
        factors = [values / of_fair, settings.dim / dim, of_fair / of_piece["kept"]]
        factors.append(32 * dim / (8 * of_piece["bytes"] / of_piece["kept"]))
        rows.append([title(piece), f"{np.prod(factors):,.0f}", *(f"{factor:.2f}" for factor in factors)])
    about = f"V = {values:,}, D = {settings.dim}; V* = {of_fair:,}, D* = {dim} ({title(fair)})."
    return about + "\n\n" + table(["model", "R", "R_vocab", "R_D", "R_zero", "R_bits"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="of the run; a run that was killed continues there")
    parser.add_argument("--rows", type=int, default=4_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backbone", default=Settings.backbone)
    parser.add_argument("--show", action="store_true", help="only print the tables of what is finished")
    options = parser.parse_args()
    folder = options.folder.resolve()
    if not options.show:
        try:
            Settings(options.rows, options.seed, backbone=options.backbone).keep(folder)
        except ValueError as error:
            sys.exit(f"scale: {error}")
        run(folder)
    found = report(folder)
    write_text(folder / "table.md", found + "\n")
    print(found)


if __name__ == "__main__":
    main()
