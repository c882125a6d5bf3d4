"""Where a sweep's trials are kept, how they are numbered, and what happens to those whose process has died.

A trial that is interrupted is given back: it waits, with its parameters and its number, to be done again.
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
RETRIES = 2  # of a trial whose process died; the third time it may be the trial's fault
HEARTBEAT_SECONDS = 30  # of trials in a database, where other machines may work too
UNPRUNED_TRIALS = 5  # that the median needs before any trial is ended early
NAMELESS_SECONDS = 60  # for which a trial may run without saying in which process, its first act
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
    """The study of that name, begun if there is none.

    Under a lock: two processes must not create one database at the same time.

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
    """A block that works with the storage of an open study; if the storage is lost, it is told in one line.

    Raises:
        ValueError: if the storage is lost.
    """
    try:
        yield
    except LOST as error:
        raise _refused(name, error) from error


def _refused(name: str, error: BaseException) -> ValueError:
    """The storage and what is wrong with it, without passwords."""
    while error.__cause__ is not None:  # the driver's own words are the shortest
        error = error.__cause__
    storage = f"the database that {STORAGE} names" if os.environ.get(STORAGE) else str(_journal(name))
    return ValueError(f"{storage} cannot be used: {masked(' '.join(str(error).split()))[:300]}")


def _journal(name: str) -> Path:
    return work("optuna", f"{name}.journal")


def _storage(name: str) -> optuna.storages.BaseStorage:
    url = os.environ.get(STORAGE)
    if not url:
        place = _journal(name)
        backend = JournalFileBackend(str(place), _Lock(place.with_suffix(".lock")))  # type: ignore[arg-type]
        return optuna.storages.JournalStorage(backend)
    if url.partition("://")[2].partition("/")[0].count("@") > 1:  # half of the password would count as the host
        raise ValueError("its address has more than one '@'; write the '@' of a password as %40")
    return optuna.storages.RDBStorage(
        url,
        heartbeat_interval=HEARTBEAT_SECONDS,
        grace_period=4 * HEARTBEAT_SECONDS,
        heartbeat_stale_trial_callback=do_again,
    )


class _Lock:
    """The lock of a journal; it ends with its process. After a kill, Optuna's own would keep everybody waiting 30 s."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def acquire(self) -> bool:
        self._file = self._path.open("w")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        return True

    def release(self) -> None:
        self._file.close()


class ByTrial(BaseSampler):
    """Draws that depend on the seed, the trial and those before it, so that an interrupted study goes on unchanged.

    Optuna's samplers, made anew from the same seed, would repeat what they drew at first.
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
    """Trials that are finished or running, and with ``waiting`` those that wait to be done again.

    A trial is surplus if all that the sweep may have are numbered below it. Numbers are the storage's, so that of two
    processes that begin a trial at once only one takes the last.
    """
    trials = study.get_trials(deepcopy=False)[:before]
    gone = {TrialState.FAIL} if waiting else {TrialState.FAIL, TrialState.WAITING}
    return sum(trial.state not in gone or "diverged" in trial.user_attrs for trial in trials)


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """In the order in which they were first begun."""
    states = (TrialState.COMPLETE, TrialState.PRUNED)
    done = [t for t in study.get_trials(deepcopy=False) if t.state in states or "diverged" in t.user_attrs]
    return sorted(done, key=lambda trial: trial.user_attrs["trial"])


def ordinal(study: optuna.Study, number: int) -> int:
    """What a trial is called: one that is done again keeps its first number, and takes none from others."""
    trials = study.get_trials(deepcopy=False)
    known = trials[number].user_attrs.get("trial")
    if known is not None:
        return int(known)
    return sum("retry_history" not in trial.system_attrs for trial in trials[:number])


def give_back(study: optuna.Study, number: int, ours: bool = False) -> None:
    """End a trial, and let it be done again, unless it has not drawn anything or another process was faster.

    Args:
        ours: the trial of this process, which Optuna may have ended already.
    """
    try:
        study.tell(number, state=TrialState.FAIL)
    except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
        if not ours or study.get_trials(deepcopy=False)[number].state != TrialState.FAIL:
            return
    do_again(study, study.get_trials(deepcopy=False)[number], ours)


def do_again(study: optuna.Study, trial: FrozenTrial, ours: bool = False) -> None:
    """Let a trial that failed wait to be done again, unless it waits already or too many of its processes have died.

    What waits has the name and the values of the trial, but not its process: that one is dead, and whoever begins the
    trial again would count as dead until it has written down its own.

    Args:
        ours: the process of the trial is this one, which has been interrupted: that is not the trial's fault.
    """
    deaths = trial.user_attrs.get("deaths", 0) + (not ours)
    known = (other.system_attrs.get("retry_history", ()) for other in study.get_trials(deepcopy=False))
    waits = any(trial.number in history for history in known)
    if "trial" in trial.user_attrs and not waits and deaths <= RETRIES:
        again = copy.deepcopy(trial)
        again.user_attrs = {"trial": trial.user_attrs["trial"], "deaths": deaths}
        RETRY(study, again)


def reap(study: optuna.Study) -> None:
    """Give back the trials of dead processes: of this machine, and where the storage has heartbeats, of any."""
    optuna.storages.fail_stale_trials(study)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        process: Mapping[str, str] | None = trial.user_attrs.get("process")
        begun = trial.datetime_start
        nameless = process is None and begun is not None and (datetime.now() - begun).total_seconds() > NAMELESS_SECONDS
        if nameless or is_dead(process or {}):
            give_back(study, trial.number)
