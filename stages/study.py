"""Studies: a grid of cells, each searched, retrained and tested with several seeds; a table reports the results.

    python -m stages.study run overall --profile quick --jobs 2      # `make study NAME=overall PROFILE=quick JOBS=2`
    python -m stages.study run overall --only dataset=synthetic backbone=fm
    python -m stages.study run overall --on ray://head:10001         # on a Ray cluster, `make study ... ON=...`
    python -m stages.study html                                      # `make report`

`run` starts DVC, which runs the stages of ``studies/<name>/dvc.yaml``, several at a time; the stages call ``keys``,
``data``, ``cell`` and ``report``. Each study is a DVC repository of its own below this one, so DVC reads only the
stages that it needs.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.encoded import Encoded
from pipeline.reporting import page
from pipeline.reporting.text import number_of
from pipeline.studies import chained
from pipeline.studies import data as study_data
from pipeline.studies import report as study_report
from pipeline.studies.cell import run as run_cell
from pipeline.studies.cluster import Cluster
from pipeline.studies.grid import AGENTS, READ, STUDIES, Cell, Study
from pipeline.studies.machines import Machines, ThisMachine
from pipeline.studies.results import Results
from pipeline.studies.run import StudyRun, commit
from pipeline.studies.sections import section
from pipeline.tracking.stage import beside_tracker
from pipeline.tracking.tracker import Tracker
from pipeline.workflow import process
from pipeline.workflow.code import ROOT
from pipeline.workflow.outputs import discard, write_json, write_text
from pipeline.workflow.places import work


def keys(study: Study) -> None:
    """Stage: write the keys on which every other stage depends to ``artifacts/keys/``."""
    Results(study).write_keys()


def data(study: Study, dataset: str) -> None:
    """Stage: ingest and encode a data set with the parameters of the profile, to ``artifacts/data/``."""
    rows = study_data.prepare(study.dataset(dataset), Results(study).data(dataset))
    print(f"data: {rows:,} rows of {dataset}")


def cell(study: Study, place: dict[str, str]) -> None:
    """Stage: compute one cell, or take over its kept results, to ``artifacts/cells/``."""
    started, one, results = time.monotonic(), study.cell(place), Results(study)
    key = results.key(one)
    if key is None:
        raise ValueError(f"cell {one.name}: its data are missing; `make study` writes them")
    if kept := results.find(one):
        write_json(results.own(one), kept, indent=None)
        print(f"cell: {one.name}: the result is here already, from commit {kept['commit']}")
        return
    encoded = Encoded.load(results.data(place["dataset"]))
    folder = work("studies", study.name, f"{one.name}-{key}")
    with _tracker(study, one, key, encoded) as tracker:
        if AGENTS in one.entry.arms:
            found = chained.run(one, encoded, folder, tracker)
        else:
            found = run_cell(one, encoded, folder, tracker, chained.PLAYED if one.entry.played else None)
        tracker.parent(metrics=_means(found["rows"]))
    about: dict[str, Any] = {"study": study.name, "profile": study.profile, "keys": one.keys, "key": key}
    seconds = time.monotonic() - started
    write_json(results.own(one), {**about, "commit": commit(), "seconds": seconds, **found}, indent=None)
    discard(folder)
    done = f"{number_of(len(found['searches']), 'search', 'searches')}, {number_of(len(found['rows']), 'model')}"
    print(f"cell: {one.name}: {done}, {seconds:.0f} s")


def report(study: Study, partial: bool = False) -> None:
    """Stage: write ``results/<profile>/``: the cells' results, table.md, table.csv and figures."""
    print(study_report.write(study, partial))


def html(out: Path) -> None:
    """Write the results of all studies to one self-contained page."""
    folders = sorted(file.parent for file in STUDIES.glob("*/results/*/table.md"))
    if not folders:
        raise ValueError("no study has results yet; run one, e.g. `make study NAME=overall PROFILE=quick`")
    about = (
        "The tests compare with one dimension for all fields, of the same size. A difference is shown if its p-value "
    )
    about += "is below 0.05 after the correction for all tests of its table."
    found = [section(folder) for folder in folders]
    write_text(out, page.page("Dimension search: studies", found, [page.paragraph(about)]))
    print(f"report: {number_of(len(found), 'section')} in {out}")


def run(study: Study, only: dict[str, list[str]], machines: Machines) -> None:
    """Run a study's cells with DVC, several at a time, and then its report."""
    os.chdir(study.folder)
    at_work = StudyRun(study, machines)
    failed = at_work.run(only)
    if failed:
        sys.exit("\n".join(["these cells failed; run the study again to retry them:", *failed]))
    if only:
        report(study, partial=True)
    else:
        at_work.report()  # prints nothing if nothing has changed
        print((Path("results") / study.profile / "table.md").read_text())


def _tracker(study: Study, one: Cell, key: str, encoded: Encoded) -> Tracker:
    values = one.params.only(["chain"] if AGENTS in one.entry.arms else READ).to_dict()
    arms = list(one.entry.arms)
    configuration = {"study": study.name, "profile": study.profile, **one.keys, "cell": values, "arms": arms}
    tags = {"study": study.name, "profile": study.profile, "cell": one.name}
    title = f"{study.name}: {one.name}"
    return beside_tracker("study", key, encoded.raw_sha256, one.params, configuration, title, tags)


def _means(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Metrics and bytes by arm and budget, averaged over the seeds, for comparisons of cells in MLflow. References have
    no bytes."""
    values: dict[str, list[float]] = {}
    for row in rows:
        arm = f"{row['arm']}" + ("" if row["budget"] is None else f"-{row['budget']}")
        figures = {**row["metrics"], "bytes": row["bytes"]}
        for metric, value in ((name, each) for name, each in figures.items() if each is not None):
            values.setdefault(f"{arm}/test_{metric}", []).append(float(value))
    return {name: float(np.mean(each)) for name, each in values.items()}


def _pairs(words: Sequence[str]) -> dict[str, list[str]]:
    pairs: dict[str, list[str]] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not value:
            raise ValueError(f"keys must be written as key=value, got {word!r}")
        pairs[key] = value.split(",")
    return pairs


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for function in (run, keys, data, cell, report):
        command = commands.add_parser(function.__name__, help=(function.__doc__ or "").splitlines()[0])
        command.add_argument("study")
        command.add_argument("--profile", default="quick")
        if function is run:
            command.add_argument("--jobs", type=int, help="cells to run at a time; they share the cores")
            command.add_argument("--on", metavar="ADDRESS", help="run them on a Ray cluster, e.g. ray://head:10001")
            command.add_argument(
                "--only", nargs="+", default=[], metavar="KEY=VALUE[,VALUE]", help="run only these cells"
            )
        elif function in (data, cell):
            command.add_argument("keys", nargs="+", metavar="KEY=VALUE")
        elif function is report:
            command.add_argument("--partial", action="store_true", help="report the finished cells only")
    command = commands.add_parser("html", help="write the results of all studies to one page")
    command.add_argument("--out", type=Path, default=STUDIES / "report.html")
    return parser


def act(options: argparse.Namespace) -> None:
    """Run the command with the options of the command line."""
    if options.command == "html":
        html(options.out)
        return
    study = Study(options.study, options.profile)
    if options.command == "run":
        if options.jobs is not None and options.jobs < 1:
            raise ValueError(f"--jobs must be at least 1, got {options.jobs}")
        only = _pairs(options.only)
        unknown = sorted(set(only) - set(study.grid))
        if unknown:
            raise ValueError(f"study {study.name} has no key {', '.join(unknown)}; it has {', '.join(study.grid)}")
        run(study, only, Cluster(options.on, options.jobs) if options.on else ThisMachine(options.jobs))
        return
    os.chdir(study.folder)
    if options.command == "report":
        report(study, options.partial)
    elif options.command == "keys":
        keys(study)
    else:
        place = {key: values[0] for key, values in _pairs(options.keys).items()}
        if options.command == "data":
            data(study, place["dataset"])
        else:
            cell(study, place)


def main() -> None:
    options = _parser().parse_args()
    os.environ["DVC_ROOT"] = str(ROOT)  # MLflow and checkpoints belong to the repository, not to the study
    kept = "finished cells and the last checkpoints are kept, and the same command goes on from them"
    process.main(lambda: act(options), arguments=True, kept=kept)


if __name__ == "__main__":
    main()
