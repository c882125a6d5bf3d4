"""Sweeps that are interrupted: killed, terminated, on several workers, or without their database."""

import contextlib
import errno
import os
import re
import shutil
import signal
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from threading import Event
from typing import Any

import optuna
import psutil
import pytest
from dvc.repo import Repo
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from pipeline.sweeps.storage import AGAIN, INTERRUPTED, STORAGE, finished, in_use, prepare, reap, to_begin
from pipeline.sweeps.trial import Outcome
from pipeline.tracking.sync import synchronise
from tests.postgres import PASSWORD
from tests.processes import awaited, check_ended
from tests.project import ROOT, Project
from tests.sweeps.sweeps import (
    QUIET,
    WARM_UP,
    at_work,
    disconnect,
    here,
    results,
    rows,
    start,
    study_of,
    worker_of,
)

pytestmark = QUIET


def test_a_killed_sweep_continues_as_if_nothing_had_happened(
    swept: Project, ready: Project, tmp_path: Path, forks: None
) -> None:
    project = ready.copy(tmp_path)
    running = start(project, tmp_path / "printed.txt")
    awaited(lambda: next(tmp_path.glob(".pipeline/sweep/*/trial-1"), None), running.is_alive)
    running.kill()
    running.join()
    project.run("sweep")
    assert results(project) == results(swept)
    assert [trial.state.name for trial in study_of(project).trials] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert not list(tmp_path.glob(".pipeline/sweep/*/trial-*"))  # no work is left to continue


@pytest.mark.parametrize("end", [SystemExit(143), KeyboardInterrupt(), ValueError("no rows")])
def test_an_interrupted_trial_waits_to_be_done_again(
    ready: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: BaseException
) -> None:
    def ended(*_: Any, **__: Any) -> None:
        raise end

    monkeypatch.setattr("pipeline.sweeps.sweep.run", ended)
    with ready.copy(tmp_path).give(sweep__space=WARM_UP).inside():
        made = here()
        with pytest.raises(type(end)):
            made.work_off(made.open())
        study = made.open()
        prepare(study, 0)
        first, again = study.trials
    assert (first.state, again.state) == (TrialState.FAIL, TrialState.WAITING)
    assert first.user_attrs.keys() == {"process", "trial", INTERRUPTED} and to_begin(study, 2) == [0, 1]
    assert again.system_attrs["fixed_params"] == first.params and again.user_attrs == {AGAIN: 0}


def test_no_trial_is_lost_in_whichever_write_the_disk_is_full(
    ready: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every line of the journal in turn is the first for which there is no room, or the only one."""
    monkeypatch.setattr("pipeline.sweeps.storage.NAMING", timedelta())
    monkeypatch.setattr("pipeline.sweeps.storage.is_dead", bool)  # a sweep that is started again is a new process
    monkeypatch.setattr("pipeline.sweeps.sweep.run", lambda experiment, *_: Outcome({}, 4, 0.5, True))
    project = ready.copy(tmp_path).give(sweep__space=WARM_UP, sweep__trials=2)
    write, lines, full = JournalFileBackend.append_logs, 0, range(0)

    def append(backend: JournalFileBackend, logs: list[dict[str, Any]]) -> None:
        nonlocal lines
        lines += 1
        if lines in full:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(backend, logs)

    def swept() -> list[tuple[Any, ...]]:
        made = here()
        study = made.open()
        with in_use(made.name):
            reap(study)
            made.work_off(study)
        return [(trial.user_attrs["trial"], trial.params, trial.values) for trial in finished(study)]

    monkeypatch.setattr(JournalFileBackend, "append_logs", append)
    with project.inside():
        undisturbed, total = swept(), lines
        assert [number for number, *_ in undisturbed] == [0, 1] and total > 10
        for first in range(1, total + 1):
            for full in (range(first, first + 1), range(first, 10**9)):
                shutil.rmtree(".pipeline")
                lines = 0
                with pytest.raises((OSError, ValueError), match="No space left"):
                    swept()
                full = range(0)
                assert swept() == undisturbed, f"line {first}"


def kill_a_worker(study: optuna.Study, alive: Callable[[], bool], least: int = 2) -> FrozenTrial:
    """Kill a process that has a trial at work, while at least so many are; the trial, as it was."""
    while True:
        victim = awaited(lambda: at_work(study, least), alive)  # they share the work
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker_of(victim), signal.SIGSTOP)  # what is at work now is still at work when it is killed
            running = study.get_trials()[victim.number].state == TrialState.RUNNING
            os.kill(worker_of(victim), signal.SIGKILL if running else signal.SIGCONT)
            if running:
                return victim


def check_trials(found: Sequence[FrozenTrial], project: Project) -> None:
    """Check that every trial is complete once, and that those which failed were done again with the same values."""
    total = len(rows(project))
    assert [row["trial"] for row in rows(project)] == [str(number) for number in range(total)]
    done = [trial for trial in found if trial.state == TrialState.COMPLETE]
    assert sorted(trial.user_attrs["trial"] for trial in done) == list(range(total))
    failed = [trial for trial in found if trial.state == TrialState.FAIL]
    began = [trial for trial in failed if "trial" in trial.user_attrs]  # the others died before they had a value
    again = {trial.user_attrs["trial"]: trial for trial in done if AGAIN in trial.user_attrs}
    assert {trial.user_attrs["trial"] for trial in began} <= set(again)
    assert len(again) <= len(failed) and all(trial.number > failed[0].number for trial in again.values())
    for trial in began:
        assert trial.params.items() <= again[trial.user_attrs["trial"]].params.items()


def told(printed: str) -> set[str]:
    """The trials that a sweep says are done."""
    return set(re.findall(r"sweep: (trial-\d+): val AUC", printed))


def test_a_killed_worker_is_replaced_and_no_trial_is_lost_or_done_twice(
    ready: Project, tmp_path: Path, forks: None
) -> None:
    project = ready.copy(tmp_path).give(sweep__workers=2, sweep__trials=4)
    study, over = study_of(project), Event()
    with ThreadPoolExecutor(1) as pool:
        killing = pool.submit(kill_a_worker, study, lambda: not over.is_set())
        try:
            project.run("sweep")
        finally:
            over.set()
        victim = killing.result()
    found = study.get_trials()
    assert len(rows(project)) == 4 and found[victim.number].state == TrialState.FAIL
    check_trials(found, project)


def published(project: Project) -> None:
    """What others see of a sweep: its runs in MLflow, and DVC's lock file."""
    (project.folder / "sweep").unlink()  # a link to the repository's
    shutil.copytree(ROOT / "sweep", project.folder / "sweep", ignore=shutil.ignore_patterns("dvc.lock"))
    with project.inside() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        synchronise(project.folder)
        Repo.init(no_scm=True).close()
        with Repo() as repo:
            repo.commit("sweep/dvc.yaml:sweep", force=True)


def test_workers_on_a_database_end_with_their_sweep_which_then_continues(
    ready: Project, tmp_path: Path, postgres: str, migrated: Path, forks: None
) -> None:
    """First a worker is killed, then the sweep itself. The password of the database is not in any file."""
    project = ready.copy(tmp_path / "project").give(sweep__workers=3, sweep__trials=6)
    study, printed = study_of(project, postgres), tmp_path / "printed.txt"
    running = start(project, printed, **{STORAGE: postgres})
    victim = kill_a_worker(study, running.is_alive, least=3)
    awaited(lambda: next((t for t in study.get_trials() if AGAIN in t.user_attrs), None), running.is_alive)
    employed = psutil.Process(running.pid).children(recursive=True)
    running.kill()
    running.join()
    assert len(employed) > 1
    check_ended(employed)
    again = start(project.give(sweep__workers=1), tmp_path / "again.txt", **{STORAGE: postgres})
    again.join()
    found = study.get_trials()
    disconnect(study)
    assert again.exitcode == 0 and len(rows(project)) == 6 and found[victim.number].state == TrialState.FAIL
    check_trials(found, project)
    first, second = printed.read_text(), (tmp_path / "again.txt").read_text()
    finished = re.search(r"(\d) of 6 trials finished", second)
    assert finished and len(told(second)) == 6 - int(finished[1]) and not told(second) & told(first)
    assert told(first) | told(second) <= {f"trial-{number}" for number in range(6)} and PASSWORD not in first + second
    shutil.copy(migrated, project.folder / "mlflow.db")
    published(project)
    assert b"sweep/trial-5" in (project.folder / "mlflow.db").read_bytes()
    assert "warm_up" in (project.folder / "sweep/dvc.lock").read_text()
    written = [path for path in project.folder.rglob("*") if path.is_file() and PASSWORD.encode() in path.read_bytes()]
    assert not written


def test_a_sweep_that_loses_its_database_says_so_in_one_line(ready: Project, tmp_path: Path, forks: None) -> None:
    project, database, printed = ready.copy(tmp_path / "project"), tmp_path / "studies.db", tmp_path / "printed.txt"
    study = study_of(project, f"sqlite:///{database}")
    running = start(project, printed, **{STORAGE: f"sqlite:///{database}"})
    awaited(lambda: at_work(study), running.is_alive)
    with closing(sqlite3.connect(database)) as store:
        store.execute("drop table trials")
    running.join()
    disconnect(study)
    lost = f"error: the database that {STORAGE} names cannot be used: no such table: trials"
    *_, line, remedy = printed.read_text().splitlines()
    assert running.exitcode == 1 and (line, "PIPELINE_TRACEBACK" in remedy) == (lost, True)
    assert "Traceback" not in printed.read_text()
