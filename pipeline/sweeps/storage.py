"""The storage of a sweep's trials, their numbers, and the recovery of trials whose process has died.

An interrupted trial is given back: it waits with its parameters and its number until a process runs it again.
"""

from __future__ import annotations

import contextlib
import copy
import fcntl
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from pipeline.tracking.identity import is_dead
from pipeline.tracking.place import masked
from pipeline.workflow.places import work

Direction = Literal["maximize", "minimize"]
STORAGE = "PIPELINE_SWEEP_STORAGE"  # environment: URL of a database, e.g. postgresql://user:password@host/optuna
RETRIES = 2  # of a trial whose process died; after more deaths the trial itself may be the cause
HEARTBEAT_SECONDS = 30  # of trials in a database, which other machines may use too
UNPRUNED_TRIALS = 5  # trials that must finish before the median ends any trial early
NAMELESS_SECONDS = 60  # in which a new trial must name its process, the first thing that it does
LOST = (SQLAlchemyError, optuna.exceptions.StorageInternalError)
SAMPLERS = {
    "tpe": optuna.samplers.TPESampler,
    "random": optuna.samplers.RandomSampler,
    "nsga2": optuna.samplers.NSGAIISampler,
}

with warnings.catch_warnings():
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    RETRY = RetryHeartbeatStaleTrialCallback()


def open_study(name: str, directions: Sequence[Direction], sampler: str, seed: int) -> optuna.Study:
    """Open the study of this name, or create it.

    A lock prevents two processes from creating the same database at the same time.

    Args:
        name: of the study.
        directions: "maximize" or "minimize" for each objective.
        sampler: a key of `SAMPLERS`.
        seed: of the sampler.

    Raises:
        ValueError: if the storage cannot be used.
    """
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder = work("optuna")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.open").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            return optuna.create_study(
                storage=_storage(name),
                study_name=name,
                load_if_exists=True,
                directions=list(directions),
                sampler=ByTrial(sampler, seed),
                pruner=optuna.pruners.MedianPruner(n_startup_trials=UNPRUNED_TRIALS),
            )
        except (ImportError, ValueError, OSError, *LOST) as error:
            raise _refused(name, error) from error


@contextlib.contextmanager
def in_use(name: str) -> Iterator[None]:
    """Context in which the loss of the storage raises a `ValueError` with a one-line message.

    Args:
        name: of the open study.

    Raises:
        ValueError: if the storage is lost.
    """
    try:
        yield
    except (*LOST, AssertionError) as error:
        cause: BaseException | None = error
        while isinstance(cause, AssertionError):  # of Optuna, where the loss leaves a trial without a state
            cause = cause.__context__
        if not isinstance(cause, LOST):
            raise
        raise _refused(name, cause) from error


def _refused(name: str, error: BaseException) -> ValueError:
    """An error that names the storage and the cause, without passwords."""
    while error.__cause__ is not None:  # the driver's own message is the shortest
        error = error.__cause__
    storage = f"the database that {STORAGE} names" if os.environ.get(STORAGE) else str(_journal(name))
    return ValueError(f"{storage} cannot be used: {masked(' '.join(str(error).split()))[:300]}")


def _journal(name: str) -> Path:
    return work("optuna", f"{name}.journal")


def _storage(name: str) -> optuna.storages.BaseStorage:
    url = os.environ.get(STORAGE)
    if not url:
        place = _journal(name)
        backend = JournalFileBackend(str(place), _Lock(place))  # type: ignore[arg-type]
        return optuna.storages.JournalStorage(backend)
    if url.partition("://")[2].partition("/")[0].count("@") > 1:  # part of the password would count as the host
        raise ValueError("its address has more than one '@'; write the '@' of a password as %40")
    return optuna.storages.RDBStorage(
        url,
        heartbeat_interval=HEARTBEAT_SECONDS,
        grace_period=4 * HEARTBEAT_SECONDS,
        heartbeat_stale_trial_callback=do_again,
    )


class _Lock:
    """The lock of a journal, for those who write. It ends with its process; Optuna's own lock blocks everybody for 30 s
    after a kill.

    Whoever gets it removes what a full disk or a kill has left of a last line, or the next line would follow it without
    a line end, and nobody could read the journal any more.
    """

    def __init__(self, journal: Path) -> None:
        self._journal = journal

    def acquire(self) -> bool:
        self._file = self._journal.with_suffix(".lock").open("w")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        with self._journal.open("rb+") as journal:
            size = journal.seek(0, os.SEEK_END)
            journal.seek(max(0, size - 1))
            if size and journal.read() != b"\n":
                journal.seek(0)
                journal.truncate(journal.read().rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        self._file.close()


class ByTrial(BaseSampler):
    """A sampler whose draws depend on the seed, the trial's number and the trials before it.

    An interrupted study therefore continues as if it had not been interrupted. Optuna's own samplers, created again
    from the same seed, repeat their first draws.

    Args:
        kind: a key of `SAMPLERS`.
        seed: of the study.
    """

    def __init__(self, kind: str, seed: int) -> None:
        self._kind, self._seed = kind, seed
        self._sampler = self._make(0)

    def _make(self, number: int) -> BaseSampler:
        seed = int(np.random.SeedSequence([self._seed, number]).generate_state(1)[0])
        return SAMPLERS[self._kind](seed=seed)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._sampler = self._make(ordinal(study, trial.number))
        self._sampler.before_trial(study, trial)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        self._sampler.after_trial(study, trial, state, values)


def counted(study: optuna.Study, *, before: int | None = None, waiting: bool = False) -> int:
    """The number of trials that are finished or running.

    A trial is surplus if the trials before it already reach the limit of the sweep. The storage numbers the trials,
    so when two processes begin a trial at the same time only one of them takes the last place.

    Args:
        study: an open study.
        before: count only trials with a number below this one.
        waiting: count also the trials that wait to run again.
    """
    trials = study.get_trials(deepcopy=False)[:before]
    gone = {TrialState.FAIL} if waiting else {TrialState.FAIL, TrialState.WAITING}
    return sum(trial.state not in gone or "diverged" in trial.user_attrs for trial in trials)


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """The finished trials, in the order in which they first began."""
    states = (TrialState.COMPLETE, TrialState.PRUNED)
    done = [t for t in study.get_trials(deepcopy=False) if t.state in states or "diverged" in t.user_attrs]
    return sorted(done, key=lambda trial: trial.user_attrs["trial"])


def ordinal(study: optuna.Study, number: int) -> int:
    """The number by which reports call a trial. A trial that runs again keeps its first number.

    Args:
        study: an open study.
        number: Optuna's number of the trial, which is new for every repetition.
    """
    trials = study.get_trials(deepcopy=False)
    known = trials[number].user_attrs.get("trial")
    if known is not None:
        return int(known)
    return sum("retry_history" not in trial.system_attrs for trial in trials[:number])


def give_back(study: optuna.Study, number: int, ours: bool = False) -> None:
    """End a trial and let it run again, unless it has no number yet or another process has already ended it.

    Args:
        study: an open study.
        number: Optuna's number of the trial.
        ours: whether the trial belongs to this process; Optuna may have ended it already.
    """
    try:
        study.tell(number, state=TrialState.FAIL)
    except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
        if not ours or study.get_trials(deepcopy=False)[number].state != TrialState.FAIL:
            return
    do_again(study, study.get_trials(deepcopy=False)[number], ours)


def do_again(study: optuna.Study, trial: FrozenTrial, ours: bool = False) -> None:
    """Queue a failed trial to run again, unless it is queued already or more than `RETRIES` of its processes have died.

    The queued trial keeps the number and the values, but not the process: the next process to run the trial would count
    as dead until it has written its own.

    Args:
        study: an open study.
        trial: the failed trial.
        ours: whether the trial belongs to this process, which was interrupted; that does not count as a death.
    """
    deaths = trial.user_attrs.get("deaths", 0) + (not ours)
    known = (other.system_attrs.get("retry_history", ()) for other in study.get_trials(deepcopy=False))
    waits = any(trial.number in history for history in known)
    if "trial" in trial.user_attrs and not waits and deaths <= RETRIES:
        again = copy.deepcopy(trial)
        again.user_attrs = {"trial": trial.user_attrs["trial"], "deaths": deaths}
        RETRY(study, again)


def reap(study: optuna.Study) -> None:
    """Give back the trials of dead processes: on this machine, or on any machine if the storage has heartbeats."""
    optuna.storages.fail_stale_trials(study)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        process: Mapping[str, str] | None = trial.user_attrs.get("process")
        begun = trial.datetime_start
        nameless = process is None and begun is not None and (datetime.now() - begun).total_seconds() > NAMELESS_SECONDS
        if nameless or is_dead(process or {}):
            give_back(study, trial.number)
