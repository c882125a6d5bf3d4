"""Where trials are kept: their numbers, trials of dead processes, and databases with passwords."""

import errno
import sqlite3
import subprocess
import time
from contextlib import closing
from datetime import datetime, timedelta, tzinfo
from pathlib import Path

import optuna
import psutil
import pytest

from pipeline.sweeps import storage
from pipeline.sweeps.storage import (
    AGAIN,
    INTERRUPTED,
    STORAGE,
    ByTrial,
    finished,
    give_back,
    in_use,
    is_surplus,
    open_study,
    ordinal,
    prepare,
    reap,
    to_begin,
)
from pipeline.tracking.identity import this_process
from tests.postgres import PASSWORD
from tests.project import Project
from tests.sweeps.sweeps import QUIET, WARM_UP, disconnect, study_of

pytestmark = QUIET


@pytest.fixture(scope="module")
def dead() -> dict[str, str]:
    """What a trial keeps of its process, of one that has ended."""
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    started = psutil.Process(process.pid).create_time()
    process.communicate()
    return {**this_process(), "pipeline.pid": str(process.pid), "pipeline.started": f"{started:.2f}"}


def begin(study: optuna.Study, total: int = 9, process: dict[str, str] | None = None) -> optuna.Trial:
    """Begin the next trial as a sweep does, in this process or another one."""
    prepare(study, to_begin(study, total)[0])
    trial = study.ask()
    trial.set_user_attr("process", process or this_process())
    trial.suggest_float("x", 0, 1)
    trial.set_user_attr("trial", ordinal(study, trial.number))
    return trial


def states(study: optuna.Study) -> list[str]:
    return [trial.state.name for trial in study.trials]


def test_a_trial_that_kills_its_process_again_and_again_is_given_up(dead: dict[str, str]) -> None:
    study = optuna.create_study()
    for _ in range(4):
        begin(study, 2, dead)
        reap(study)
    drawn = [trial.params["x"] for trial in study.trials]
    assert [trial.user_attrs["trial"] for trial in study.trials] == [0, 0, 0, 1]
    assert drawn[0] == drawn[1] == drawn[2] != drawn[3]
    assert states(study) == ["FAIL"] * 4 and to_begin(study, 2) == [1, 2]


def test_a_trial_that_is_interrupted_again_and_again_is_not_given_up() -> None:
    study = optuna.create_study()
    for _ in range(5):
        trial = begin(study)
        trial.set_user_attr(INTERRUPTED, True)
        give_back(study, trial.number)
    assert {trial.user_attrs["trial"] for trial in study.trials} == {0}
    assert len({trial.params["x"] for trial in study.trials}) == 1 and to_begin(study, 2) == [0, 1]


def test_a_trial_that_another_machine_took_for_dead_is_done_again_once(dead: dict[str, str]) -> None:
    study = optuna.create_study()
    trial = begin(study, process=dead)
    reap(study)
    give_back(study, trial.number)
    for _ in range(2):
        prepare(study, 0)
    assert states(study) == ["FAIL", "WAITING"]


def test_a_trial_that_is_begun_again_is_not_taken_for_dead(dead: dict[str, str]) -> None:
    study = optuna.create_study()
    begin(study)
    begin(study, process=dead)
    reap(study)
    begin(study)
    reap(study)
    assert states(study) == ["RUNNING", "FAIL", "RUNNING"]
    assert [trial.user_attrs["trial"] for trial in study.trials] == [0, 1, 1]


def test_a_trial_that_had_not_drawn_all_values_draws_all_of_them_again(dead: dict[str, str]) -> None:
    study = optuna.create_study()
    trial = study.ask()
    trial.set_user_attr("process", dead)
    first = trial.suggest_float("x", 0, 1)
    reap(study)
    assert begin(study).params["x"] != first and study.trials[1].user_attrs["trial"] == 0


def test_a_trial_that_names_no_process_is_waited_for_and_then_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    study = optuna.create_study()
    begun = study.ask()
    monkeypatch.setattr(time, "sleep", lambda seconds: begun.set_user_attr("process", this_process()))
    reap(study)
    assert states(study) == ["RUNNING"]
    study.ask()
    monkeypatch.setattr(storage, "NAMING", timedelta())
    reap(study)
    assert states(study) == ["RUNNING", "FAIL"] and to_begin(study, 3) == [1, 2]
    begin(study)
    assert study.trials[2].user_attrs["trial"] == 1


def test_a_trial_of_a_machine_whose_clock_is_ahead_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Behind(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime.now(tz) - timedelta(minutes=2)

    study = optuna.create_study()
    begun = study.ask()
    monkeypatch.setattr(storage, "datetime", Behind)
    monkeypatch.setattr(time, "sleep", lambda seconds: begun.set_user_attr("process", this_process()))
    reap(study)
    assert states(study) == ["RUNNING"]


@pytest.mark.parametrize("sampler", ["random", "tpe", "nsga2"])
def test_interrupted_trials_change_no_other(sampler: str) -> None:
    """The first generation of NSGA-II has 50 trials."""

    def drawn(interrupted: set[int]) -> list[float]:
        study = optuna.create_study(directions=["maximize", "minimize"], sampler=ByTrial(sampler, 0))
        for number in range(110):
            trial = begin(study, 110)
            if number in interrupted:
                trial.set_user_attr(INTERRUPTED, True)
                give_back(study, trial.number)
                trial = begin(study, 110)
            study.tell(trial, [trial.params["x"], trial.params["x"] ** 2])
        return [trial.params["x"] for trial in finished(study)]

    assert len(set(drawn(set()))) > 50 and drawn({10, 49, 60}) == drawn(set())


def test_of_two_processes_that_begin_the_last_trial_at_once_one_steps_back() -> None:
    study = optuna.create_study()
    first, second, third = (study.ask() for _ in range(3))
    assert [is_surplus(study, trial.number, 2) for trial in (first, second, third)] == [False, False, True]
    give_back(study, first.number)
    assert is_surplus(study, third.number, 2) and to_begin(study, 2) == [0]  # the first trial is not lost
    for _ in range(2):  # by two processes on two machines
        study.enqueue_trial({}, user_attrs={AGAIN: 0})
    again = [study.ask().number, study.ask().number]
    assert [is_surplus(study, number, 2) for number in again] == [False, True]
    give_back(study, third.number)
    assert to_begin(study, 2) == [] and to_begin(study, 4) == [2, 3]  # more trials are wanted


@pytest.mark.filterwarnings("ignore:Heartbeat of storage is supposed")
def test_in_a_database_the_trial_of_a_machine_that_has_gone_silent_is_done_again(
    ready: Project, tmp_path: Path
) -> None:
    database = tmp_path / "studies.db"
    project = ready.copy(tmp_path / "project").give(sweep__space=WARM_UP)
    study = study_of(project, f"sqlite:///{database}")
    trial = study.ask()
    trial.set_user_attr("process", {**this_process(), "pipeline.host": "elsewhere"})
    trial.suggest_float("x", 0, 1)
    trial.set_user_attr("trial", 0)
    study._storage.record_heartbeat(trial._trial_id)  # type: ignore[attr-defined]
    reap(study)
    assert [t.state.name for t in study.trials] == ["RUNNING"]
    with closing(sqlite3.connect(database)) as store:
        store.execute("update trial_heartbeats set heartbeat = '2020-01-01 00:00:00'")
        store.commit()
    reap(study)
    assert [t.state.name for t in study.trials] == ["FAIL"]
    prepare(study, 0)
    assert study.ask().suggest_float("x", 0, 1) == trial.params["x"]
    disconnect(study)


# --- databases that cannot be used


def refused(monkeypatch: pytest.MonkeyPatch, address: str) -> str:
    monkeypatch.setenv(STORAGE, address)
    with pytest.raises(ValueError, match=f"^the database that {STORAGE} names cannot be used: ") as refusal:
        open_study("sweep-1", ["maximize"], "tpe", 0)
    return str(refusal.value)


@pytest.mark.parametrize(
    ("address", "told"),
    [
        (f"postgresql://me:{PASSWORD}@localhost:1/x", "connection"),
        (f"postgresql://localhost:1/x?user=me&password={PASSWORD}", "connection"),
        (f"postgresql://me:half@{PASSWORD}@localhost:1/x", "write the '@' of a password as %40"),
        (f"nosuch://me:{PASSWORD}@localhost/x", "nosuch"),
        (f"me:{PASSWORD}@localhost/x", "Could not parse"),
        (PASSWORD, "Could not parse"),
    ],
)
def test_no_message_holds_a_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, told: str) -> None:
    monkeypatch.chdir(tmp_path)
    message = refused(monkeypatch, address)
    assert told in message and PASSWORD not in message and "half" not in message and "\n" not in message


def test_a_server_that_refuses_the_password_is_not_told_it(
    postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    message = refused(monkeypatch, postgres.replace(PASSWORD, "wrong-one"))
    assert "password authentication failed" in message and "wrong-one" not in message


def test_a_line_that_a_full_disk_has_cut_is_removed_before_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(STORAGE, raising=False)
    journal = tmp_path / ".pipeline/optuna/cut.journal"
    study = open_study("cut", ["maximize"], "random", 0)
    study.tell(study.ask(), 1.0)
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code":4,"worker_id":"x')
    study.tell(study.ask(), 2.0)  # of the same process, and then of another one
    journal.write_bytes(journal.read_bytes() + b"{")
    again = open_study("cut", ["maximize"], "random", 0)
    again.tell(again.ask(), 3.0)
    assert [trial.value for trial in again.trials] == [1.0, 2.0, 3.0]
    assert journal.read_bytes().startswith(whole) and journal.read_bytes().endswith(b"\n")


def test_a_loss_that_an_assertion_of_optuna_hides_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def lost(error: Exception) -> None:
        try:
            raise error
        finally:
            assert tmp_path is None, "Should not reach."

    with pytest.raises(ValueError, match="cannot be used: the server is gone"), in_use("one"):
        lost(optuna.exceptions.StorageInternalError("the server is gone"))
    with pytest.raises(OSError, match="No space left"), in_use("one"):
        lost(OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(AssertionError, match="another"), in_use("one"):
        raise AssertionError("another")


def test_a_journal_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(STORAGE, raising=False)
    journal = tmp_path / ".pipeline/optuna/sweep-1.journal"
    journal.parent.mkdir(parents=True)
    journal.write_text("nonsense\nmore\n")
    with pytest.raises(ValueError, match=r"sweep-1\.journal cannot be used: ") as refusal:
        open_study("sweep-1", ["maximize"], "tpe", 0)
    assert str(journal) in str(refusal.value) and STORAGE not in str(refusal.value)
