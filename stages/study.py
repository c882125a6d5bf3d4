"""Studies: a grid of cells, each searched, retrained and tested with several seeds, and a table of what came out.

    python -m stages.study run overall --profile quick --jobs 2      # `make study NAME=overall PROFILE=quick JOBS=2`
    python -m stages.study run overall --only dataset=synthetic backbone=fm
    python -m stages.study html                                      # `make report`

`run` has DVC run the stages of ``studies/<name>/dvc.yaml``, several at a time; those call ``data``, ``cell`` and
``report``. Each study is a DVC repository of its own below this one, so that neither pays for the stages of the other.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from pipeline.tracking import Tracker, configuration_key
from stages import _model, _stage
from stages._study import ROOT, STUDIES, Cell, Study

ARTIFACTS = Path("artifacts")


def data(study: Study, dataset: str) -> None:
    """Stage: a data set, ingested and encoded with the parameters of the profile -> ``artifacts/data/``."""
    from pipeline.encoding.encode import Settings, encode
    from pipeline.sources.raw import write_raw
    from stages.ingest import opened

    cell = next((cell for cell in study.cells() if cell.keys["dataset"] == dataset), None)
    if cell is None:
        raise ValueError(f"study {study.name}, profile {study.profile}, has no dataset {dataset!r}")
    given = cell.params["dataset"]
    source = opened(given["name"], given["path"], given["options"] or {})
    with _stage.whole(_encoded(study, dataset)) as folder:
        raw = folder / "raw"
        raw.mkdir(parents=True)
        record = {"dataset": given["name"], **write_raw(source, raw / "table.parquet")}
        (raw / "raw.json").write_text(json.dumps(record))
        encode(raw, folder / "encoded", Settings(**cell.params["encode"]))
        for path in (folder / "encoded").iterdir():
            path.replace(folder / path.name)
        (folder / "encoded").rmdir()
        shutil.rmtree(raw)
    print(f"data: {record['rows']:,} rows of {dataset}")


def cell(study: Study, keys: dict[str, str]) -> None:
    """Stage: one cell -> ``artifacts/cells/``."""
    from stages import _cell

    started, commit = time.monotonic(), _commit()
    one = study.cell(keys)
    encoded = _encoded(study, keys["dataset"])
    key = _fingerprint(study, one, encoded)
    if kept := _read(_kept(study, one), key):
        with _stage.whole(_result(study, one)) as file:
            file.write_text(json.dumps(kept) + "\n")
        print(f"cell: {one.name}: as {_kept(study, one)} has it, of commit {kept['commit']}")
        return
    work = ROOT / ".pipeline/studies" / study.name / f"{one.name}-{key}"
    work.mkdir(parents=True, exist_ok=True)
    with _tracker(study, one, key, encoded) as tracker:
        found = _cell.run(one, encoded, work, tracker)
        for name, value in _means(found["rows"]).items():
            tracker.parent(metrics={name: value})
    about = {"study": study.name, "profile": study.profile, "keys": one.keys, "key": key}
    result = {**about, "commit": commit, "seconds": time.monotonic() - started, **found}
    with _stage.whole(_result(study, one)) as file:
        file.write_text(json.dumps(result) + "\n")
    shutil.rmtree(work)
    print(f"cell: {one.name}: {len(found['rows'])} models, {time.monotonic() - started:.0f} s")


def report(study: Study, partial: bool = False) -> None:
    """Stage: the cells' results -> ``results/<profile>/``: them, table.md, table.csv, figures and section.html."""
    from stages import _tables

    results, missing, unknown = {}, [], {}
    for one in study.cells():
        encoded = _encoded(study, one.keys["dataset"])
        if found := _found(study, one):
            results[one.name] = found
        elif not encoded.exists() and _kept(study, one).exists():  # of data that are not here to compare it with
            unknown[one.name] = json.loads(_kept(study, one).read_text())
        else:
            missing.append(one.name)
    if not results:
        raise ValueError(f"study {study.name}, profile {study.profile}, has no results yet; run it")
    if (missing or unknown) and not partial:
        raise ValueError(f"study {study.name}: cells {', '.join([*missing, *unknown])} have no results yet; run them")
    with _stage.whole(Path("results") / study.profile) as folder:
        (folder / "cells").mkdir(parents=True)
        for name, found in {**results, **unknown}.items():
            (folder / "cells" / f"{name}.json").write_text(json.dumps(found) + "\n")
        text = _tables.write(study, list(results.values()), missing, list(unknown), folder)
    print(text)


def html(out: Path) -> None:
    """All sections in one self-contained page."""
    from stages import _page

    sections = sorted(STUDIES.glob("*/results/*/section.html"))
    if not sections:
        raise ValueError("no study has results yet; `make study NAME=overall PROFILE=quick` makes some")
    body = [path.read_text() for path in sections]
    with _stage.whole(out) as file:
        file.write_text(_page.page("Dimension search: studies", body))
    print(f"report: {len(sections)} sections in {out}")


def run(study: Study, only: dict[str, list[str]], jobs: int) -> None:
    """Let DVC run a study's cells, some at a time, then its report.

    Raises:
        SystemExit: if a cell failed; the others are done all the same.
    """
    os.chdir(study.folder)
    for key, values in only.items():
        there = list(dict.fromkeys(one.keys[key] for one in study.cells()))
        if absent := [value for value in values if value not in there]:
            where = f"study {study.name}, profile {study.profile}"
            raise ValueError(f"{where}, has no {key} {', '.join(absent)}; it has {', '.join(there)}")
    wanted = [one for one in study.cells() if all(one.keys[key] in values for key, values in only.items())]
    if not wanted:
        raise ValueError(f"no cell of study {study.name}, profile {study.profile}, has {only}")
    if not Path(".dvc").exists():
        no_scm = [] if _git("rev-parse", "--git-dir") else ["--no-scm"]
        subprocess.run([_dvc(), "init", "--quiet", *(no_scm or ["--subdir"])], check=True)
    runs = sum(one.runs for one in wanted)
    left = sum(one.runs * one.seconds for one in wanted)
    print(
        f"study {study.name}, profile {study.profile}: {len(wanted)} cells, {len(study.seeds)} seeds, {runs} searches "
        f"and trainings; about {_duration(left / jobs)} with {jobs} jobs, less for what is done already",
        flush=True,
    )
    began, done = time.monotonic(), 0
    failed: list[str] = []
    for dataset in dict.fromkeys(one.keys["dataset"] for one in wanted):
        try:
            _reproduce(study, f"data-{study.profile}@{dataset}", dataset, jobs)
        except RuntimeError as error:
            failed.append(f"{dataset}: {error}")
            wanted = [one for one in wanted if one.keys["dataset"] != dataset]
    here = {one.name for one in wanted if _found(study, one)}
    if here:
        print(f"{len(here)} of {len(wanted)} cells are here already", flush=True)
    cost = {one.name: 0.0 if one.name in here else one.runs * one.seconds for one in wanted}
    total = left = sum(cost.values())
    # what is here goes first, then the longest, that none is left over at the end
    wanted.sort(key=lambda one: (one.name not in here, -one.runs * one.seconds))
    pool = ThreadPoolExecutor(jobs)
    try:
        stages = {pool.submit(_reproduce, study, f"cell-{study.profile}@{o.name}", o.name, jobs): o for o in wanted}
        for future in as_completed(stages):
            one = stages[future]
            done += 1
            left -= cost[one.name]
            spent = time.monotonic() - began
            ahead = spent * left / (total - left) if total > left else left / jobs
            wrong = future.exception()
            if wrong:
                failed.append(f"{one.name}: {wrong}")
            print(
                f"[{done}/{len(wanted)}] {one.name}{' FAILED' if wrong else ''}, {_duration(spent)} gone, "
                f"about {_duration(ahead)} left",
                flush=True,
            )
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list(_running):
            process.terminate()  # its stage ends with it, and goes on from its checkpoint the next time
        raise
    pool.shutdown()
    if failed:
        sys.exit("\n".join(["these cells failed; run the study again to continue with them:", *failed]))
    if only:
        report(study, partial=True)
    else:
        command = [_dvc(), "repro", "--quiet", "--single-item", f"report-{study.profile}"]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)  # which is silent where nothing has changed
        print((Path("results") / study.profile / "table.md").read_text())


def _reproduce(study: Study, stage: str, name: str, jobs: int) -> None:
    """Have DVC run one stage; what it says goes to a file."""
    log = Path("artifacts/logs") / study.profile / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    environment = {"OMP_NUM_THREADS": str(max(1, cores // jobs)), **os.environ}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
    command = [_dvc(), "--wait-for-lock", "repro", "--single-item", stage]
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
        _running.add(process)
        try:
            ended = process.wait()
        finally:
            _running.discard(process)
    if ended:
        tail = [line for line in log.read_text().splitlines() if line.strip()][-12:]
        raise RuntimeError("\n  ".join([f"see {study.folder / log}", *tail]))


_running: set[subprocess.Popen[bytes]] = set()


def _encoded(study: Study, dataset: str) -> Path:
    return ARTIFACTS / "data" / study.profile / dataset


def _result(study: Study, one: Cell) -> Path:
    return ARTIFACTS / "cells" / study.profile / f"{one.name}.json"


def _kept(study: Study, one: Cell) -> Path:
    """Where a report keeps the cell's result, for whoever has the repository and not its DVC cache."""
    return Path("results") / study.profile / "cells" / f"{one.name}.json"


def _found(study: Study, one: Cell) -> dict[str, Any] | None:
    """A cell's result, of this checkout's own run or as a report has kept it; none if either is of something else."""
    encoded = _encoded(study, one.keys["dataset"])
    key = _fingerprint(study, one, encoded) if encoded.exists() else ""
    return _read(_result(study, one), key) or _read(_kept(study, one), key)


def _read(path: Path, key: str) -> dict[str, Any] | None:
    """A cell's result; none if other settings, code or data have left it."""
    found: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
    return found if found and found["key"] == key else None


def _fingerprint(study: Study, one: Cell, encoded: Path) -> str:
    """All that a cell's figures depend on: its parameters, the code, the data."""
    keys = {f"item.{key}": value.replace("-", "_") for key, value in one.keys.items()}
    code = []
    for path in study.stage("cell")["deps"]:
        for reference, value in keys.items():
            path = path.replace(f"${{{reference}}}", value)
        if path.endswith(".py"):
            code.append(Path(path).read_text())
    values = [one.params, one.search, one.arms, one.budgets, one.share, one.alone, one.tuning, one.seeds, code]
    schema = (encoded / "schema.json").read_text()
    return configuration_key({"cell": values, "schema": schema})


def _tracker(study: Study, one: Cell, key: str, encoded: Path) -> Tracker:
    given = {"study": study.name, "profile": study.profile, **one.keys, "cell": one.params, "arms": one.arms}
    named = {name: one.params[name]["name"] for name in ("dataset", "backbone", "method")}
    tags = {**named, "study": study.name, "profile": study.profile, "cell": one.name}
    digest = _stage.read(encoded / "schema.json")["raw_sha256"][:36]
    dataset = {"name": one.keys["dataset"], "digest": digest, "source": one.params["dataset"]["path"]}
    return Tracker(ROOT, "study", key, given, tags=tags, dataset=dataset, title=f"{study.name}: {one.name}")


def _means(rows: Iterable[dict[str, object]]) -> dict[str, float]:
    """AUC and bytes by arm and budget, over the seeds: what MLflow compares cells by."""
    import numpy as np

    found: dict[str, list[float]] = {}
    for row in rows:
        arm = f"{row['arm']}" + ("" if row["budget"] is None else f"-{row['budget']}")
        for figure in ("auc", "logloss", "bytes"):
            found.setdefault(f"{arm}/test_{figure}", []).append(float(row[figure]))  # type: ignore[arg-type]
    return {name: float(np.mean(values)) for name, values in found.items()}


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )


def _dvc() -> str:
    """The one of this environment, whatever the path."""
    beside = Path(sys.executable).with_name("dvc")
    return str(beside) if beside.exists() else "dvc"


def _git(*words: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
    except OSError:  # there is no git
        return ""
    return done.stdout.strip()


def _commit() -> str:
    return _git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*") or "unknown"


def _keys(words: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not value:
            raise ValueError(f"keys are given as key=value, however {word!r}")
        found[key] = value.split(",")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("run", "data", "cell", "report"):
        command = commands.add_parser(name, help=(globals()[name].__doc__ or "").splitlines()[0])
        command.add_argument("study")
        command.add_argument("--profile", default="quick")
        if name == "run":
            cores = os.cpu_count() or 1
            command.add_argument("--jobs", type=int, default=cores, help="cells at a time, which share the cores")
            command.add_argument("--only", nargs="+", default=[], metavar="KEY=VALUE[,VALUE]")
        elif name in ("data", "cell"):
            command.add_argument("keys", nargs="+", metavar="KEY=VALUE")
        else:
            command.add_argument("--partial", action="store_true", help="of the cells that there are")
    command = commands.add_parser("html", help="all studies' results in one page")
    command.add_argument("--out", type=Path, default=STUDIES / "report.html")
    options = parser.parse_args()
    os.environ["DVC_ROOT"] = str(ROOT)  # where MLflow and checkpoints are, and not in the study

    def act() -> None:
        if options.command == "html":
            return html(options.out)
        study = Study(options.study, options.profile)
        if options.command == "run":
            if options.jobs < 1:
                raise ValueError(f"--jobs must be at least 1, however {options.jobs}")
            only = _keys(options.only)
            unknown = sorted(set(only) - set(study.grid))
            if unknown:
                raise ValueError(f"study {study.name} has no key {', '.join(unknown)}; it has {', '.join(study.grid)}")
            return run(study, only, options.jobs)
        os.chdir(study.folder)
        _model.tune()
        if options.command == "report":
            return report(study, options.partial)
        keys = {key: values[0] for key, values in _keys(options.keys).items()}
        return data(study, keys["dataset"]) if options.command == "data" else cell(study, keys)

    _stage.main(act, arguments=True)


if __name__ == "__main__":
    main()
