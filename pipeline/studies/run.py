"""Run the cells of a study in parallel, each as a DVC stage, on this machine or on a cluster."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path

from tqdm import tqdm

from pipeline.reporting.text import number_of
from pipeline.studies.grid import Cell, Study
from pipeline.studies.machines import Machines, environment
from pipeline.studies.results import Results
from pipeline.workflow import process
from pipeline.workflow.code import ROOT
from pipeline.workflow.progress import progress, ticking

SHOWN_LINES = 12  # of the log of a stage that failed
BAR = "{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}{postfix}]"  # in units of `Cell.cost`

log = logging.getLogger("pipeline.studies")


class StudyRun:
    """A run of a study. The working directory must be the study's folder.

    Args:
        study: its definition.
        machines: where its stages run.
    """

    def __init__(self, study: Study, machines: Machines) -> None:
        self.study, self.machines = study, machines
        self.results = Results(study)

    def run(self, only: Mapping[str, Sequence[str]]) -> list[str]:
        """Run the cells of a study.

        Args:
            only: values to run, for keys of the grid; a key that is left out does not restrict the cells.

        Returns:
            One message for each data set or cell that failed.

        Raises:
            ValueError: if ``only`` names a value that is not in the grid, or selects no cell.
        """
        wanted = self._wanted(only)
        self._say_plan(wanted)
        if not Path(".dvc").exists():
            no_scm = [] if git("rev-parse", "--git-dir") else ["--no-scm"]
            subprocess.run([dvc(), "init", "--quiet", *(no_scm or ["--subdir"])], check=True)
        self._reproduce(f"keys-{self.study.profile}", "keys")
        failed: list[str] = []
        for dataset in dict.fromkeys(cell.keys["dataset"] for cell in wanted):
            try:
                self._reproduce(f"data-{self.study.profile}@{dataset}", dataset)
            except RuntimeError as error:
                failed.append(f"{dataset}: {error}")
                wanted = [cell for cell in wanted if cell.keys["dataset"] != dataset]
        return failed + self._run_cells(wanted)

    def report(self) -> None:
        """Write the report of all cells, as a DVC stage."""
        command = [dvc(), "repro", "--quiet", "--single-item", f"report-{self.study.profile}"]
        subprocess.run(command, stdout=subprocess.DEVNULL, env=environment(process.cores()), check=True)

    def _wanted(self, only: Mapping[str, Sequence[str]]) -> list[Cell]:
        where = f"study {self.study.name}, profile {self.study.profile},"
        cells = self.study.cells()
        for key, values in only.items():
            there = list(dict.fromkeys(cell.keys[key] for cell in cells))
            if absent := [value for value in values if value not in there]:
                raise ValueError(f"{where} has no {key} {', '.join(absent)}; it has {', '.join(there)}")
        wanted = [cell for cell in cells if all(cell.keys[key] in values for key, values in only.items())]
        if not wanted:
            raise ValueError(f"{where} has no cell with {dict(only)}")
        return wanted

    def _say_plan(self, wanted: Sequence[Cell]) -> None:
        log.info(
            "study %s, profile %s: %s, %s, %s; about %s with %s, less if some results exist already",
            self.study.name,
            self.study.profile,
            number_of(len(wanted), "cell"),
            number_of(len(self.study.seeds), "seed"),
            number_of(sum(cell.runs for cell in wanted), "search or training", "searches and trainings"),
            duration(sum(cell.cost for cell in wanted) / self.machines.jobs),
            number_of(self.machines.jobs, "job"),
        )

    def _run_cells(self, wanted: list[Cell]) -> list[str]:
        here = {cell.name for cell in wanted if self.results.find(cell)}
        if here:
            log.info("finished already: %d of %s", len(here), number_of(len(wanted), "cell"))
        # Finished cells first, then the longest, so that no long cell runs alone at the end.
        wanted.sort(key=lambda cell: (cell.name not in here, -cell.cost))
        pool = ThreadPoolExecutor(self.machines.jobs)
        try:
            stages: dict[Future[None], Cell] = {
                pool.submit(self._reproduce, f"cell-{self.study.profile}@{cell.name}", cell.name): cell
                for cell in wanted
            }
            failed = []
            total = sum(cell.cost for cell in wanted if cell.name not in here)
            with ticking(progress(total=total, desc=f"study {self.study.name}", bar_format=BAR)) as bar:
                bar.set_postfix_str(_pace(0, len(here), len(wanted), bar), refresh=False)
                for number, future in enumerate(as_completed(stages), 1):
                    cell, wrong = stages[future], future.exception()
                    if wrong:
                        failed.append(f"{cell.name}: {wrong}")
                    with bar.external_write_mode():
                        log.info("[%d/%d] %s%s", number, len(wanted), cell.name, " FAILED" if wrong else "")
                    bar.set_postfix_str(_pace(number, len(here), len(wanted), bar), refresh=False)
                    bar.update(0 if cell.name in here else cell.cost)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            self.machines.stop()
            raise
        pool.shutdown()
        return failed

    def _reproduce(self, stage: str, name: str) -> None:
        """Run one DVC stage and write its output to a log file.

        Raises:
            RuntimeError: with the end of the log, if the stage fails.
        """
        output = Path("artifacts/logs") / self.study.profile / f"{name}.log"
        command = [dvc(), "--wait-for-lock", "repro", "--single-item", stage]
        if self.machines.run(command, output):
            tail = [line for line in output.read_text().splitlines() if line.strip()][-SHOWN_LINES:]
            raise RuntimeError("\n  ".join([f"see {self.study.folder / output}", *tail]))


def _pace(done: int, here: int, cells: int, bar: tqdm) -> str:
    """The cells that are done, and how many of those that were not here already are done in an hour."""
    seconds = bar.format_dict["elapsed"]
    rate = f", {3600 * (done - here) / seconds:.3g} cells/h" if done > here and seconds else ""
    return f"{done}/{cells} cells{rate}"


def duration(seconds: float) -> str:
    """Seconds as text: "80 s", "12 min", "3.4 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def dvc() -> str:
    """The path of ``dvc`` in this environment; ``dvc`` itself if it is not installed here."""
    beside = Path(sys.executable).with_name("dvc")
    return str(beside) if beside.exists() else "dvc"


def git(*words: str) -> str:
    """The output of a git command in the repository; empty if git or the repository is missing."""
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip()


def commit() -> str:
    """The commit that is checked out, with "-dirty" if files differ from it."""
    return git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*") or "unknown"
