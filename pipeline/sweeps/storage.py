"""The storage of a sweep's trials, their numbers, and the recovery of trials whose process has died.

A trial is begun by an attempt, which is a trial of Optuna. If the attempt fails, the next process that has nothing to
do makes a further one. Nothing needs to be written for that, so a full disk costs no trial. A trial is given up only
after `RETRIES` attempts more that ended without a word, because they killed their process or could write nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError

from pipeline.tracking.identity import is_dead
from pipeline.tracking.place import masked
from pipeline.workflow.places import work

Direction = Literal["maximize", "minimize"]
STORAGE = "PIPELINE_SWEEP_STORAGE"  # environment: URL of a database, e.g. postgresql://user:password@host/optuna
RETRIES = 2  # of a trial whose process died; after more deaths the trial itself may be the cause
HEARTBEAT_SECONDS = 30  # of trials in a database, which other machines may use too
UNPRUNED_TRIALS = 5  # trials that must finish before the median ends any trial early
NAMING = timedelta(minutes=1)  # in which a new trial must name its process, the first thing that it does
POLL_SECONDS = 0.1
AGAIN = "again"  # attribute of a further attempt: the number of its trial
INTERRUPTED = "interrupted"  # attribute of an attempt that its own process has ended
LOST = (SQLAlchemyError, optuna.exceptions.StorageInternalError)
SAMPLERS = {
    "tpe": optuna.samplers.TPESampler,
    "random": optuna.samplers.RandomSampler,
    "nsga2": optuna.samplers.NSGAIISampler,
}


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
    """Context in which the loss of the storage raises an error with a one-line message.

    Args:
        name: of the open study.

    Raises:
        ValueError: if the storage is lost.
        OSError: if it cannot be written, e.g. on a full disk.
    """
    try:
        yield
    except (*LOST, AssertionError) as error:
        cause: BaseException | None = error
        while isinstance(cause, AssertionError):  # of Optuna, where the loss leaves a trial without a state
            cause = cause.__context__
        if isinstance(cause, OSError):
            raise cause from error
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
    return optuna.storages.RDBStorage(url, heartbeat_interval=HEARTBEAT_SECONDS, grace_period=4 * HEARTBEAT_SECONDS)


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


def attempts(study: optuna.Study) -> dict[int, list[FrozenTrial]]:
    """The attempts at each trial, by the number by which reports call the trial.

    A first attempt takes the next number, and a further one has its number from its creation on. Optuna's own numbers
    are of attempts. So an attempt has its number as soon as the storage has the attempt.
    """
    found: dict[int, list[FrozenTrial]] = {}
    firsts = 0
    for attempt in study.get_trials(deepcopy=False):
        number = attempt.user_attrs.get(AGAIN, firsts)
        firsts += AGAIN not in attempt.user_attrs
        found.setdefault(number, []).append(attempt)
    return found


def ordinal(study: optuna.Study, number: int) -> int:
    """The number by which reports call the trial of an attempt.

    Args:
        study: an open study.
        number: Optuna's number of the attempt.
    """
    return next(known for known, tried in attempts(study).items() if number in {one.number for one in tried})


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """The finished trials, in the order of their numbers."""
    states = (TrialState.COMPLETE, TrialState.PRUNED)
    done = [t for t in study.get_trials(deepcopy=False) if t.state in states or "diverged" in t.user_attrs]
    return sorted(done, key=lambda trial: trial.user_attrs["trial"])


def to_begin(study: optuna.Study, total: int) -> list[int]:
    """The numbers of the trials that no process has begun, or whose attempts have all failed.

    Args:
        study: an open study.
        total: number of trials. One that has killed its process more than `RETRIES` times is given up, and another one
            takes its place.
    """
    known = attempts(study)
    wanted = (number for number in itertools.count() if _deaths(known.get(number, ())) <= RETRIES)
    return [number for number in itertools.islice(wanted, total) if not any(map(_stands, known.get(number, ())))]


def is_surplus(study: optuna.Study, number: int, total: int) -> bool:
    """Whether an attempt is not needed, because other processes began at the same time as this one.

    The storage numbers the attempts, so of those at one trial only the first one goes on.

    Args:
        study: an open study.
        number: Optuna's number of the attempt, which runs.
        total: number of trials; see `to_begin`.
    """
    known, own = attempts(study), ordinal(study, number)
    given_up = sum(_deaths(known[other]) > RETRIES for other in range(own))
    return own - given_up >= total or any(_stands(one) for one in known[own] if one.number < number)


def prepare(study: optuna.Study, number: int) -> None:
    """Queue a further attempt at a trial whose attempts have failed, for the next process that asks for one.

    It has the values of an earlier attempt, because what that one has left belongs to them, and what the sampler noted
    with them, e.g. the generation. An attempt that had not drawn all its values leaves none: drawn anew, they are the
    same.

    Args:
        study: an open study.
        number: of the trial; one of `to_begin`.
    """
    tried = attempts(study).get(number, [])
    if tried and not any(one.state == TrialState.WAITING for one in tried):
        noted: dict[str, Any] = {"fixed_params": {}}
        for one in tried:
            if "trial" in one.user_attrs:
                noted = {**one.system_attrs, "fixed_params": one.params}
        study.add_trial(create_trial(state=TrialState.WAITING, system_attrs=noted, user_attrs={AGAIN: number}))


def _stands(attempt: FrozenTrial) -> bool:
    """Whether an attempt runs or has a result."""
    return attempt.state not in (TrialState.FAIL, TrialState.WAITING) or "diverged" in attempt.user_attrs


def _deaths(tried: Iterable[FrozenTrial]) -> int:
    """The number of attempts that have killed their process."""
    return sum(
        one.state == TrialState.FAIL
        and "trial" in one.user_attrs
        and not {"diverged", INTERRUPTED} & set(one.user_attrs)
        for one in tried
    )


def give_back(study: optuna.Study, number: int) -> None:
    """End an attempt, if it has not ended, so that the trial is begun again.

    Args:
        study: an open study.
        number: Optuna's number of the attempt.
    """
    with contextlib.suppress(ValueError, optuna.exceptions.UpdateFinishedTrialError):
        study.tell(number, state=TrialState.FAIL)


def reap(study: optuna.Study) -> None:
    """Give back the trials of dead processes: on this machine, or on any machine if the storage has heartbeats.

    A process names itself in a trial right after it has begun it. One that does not do so within `NAMING` is dead; this
    is waited for, because the trials that follow depend on those before them.
    """
    optuna.storages.fail_stale_trials(study)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        age = datetime.now() - (trial.datetime_start or datetime.now())  # below 0 by the clock of another machine
        latest = time.monotonic() + min(NAMING, NAMING - age).total_seconds()
        while _is_nameless(trial) and time.monotonic() < latest:
            time.sleep(POLL_SECONDS)
            trial = study.get_trials(deepcopy=False)[trial.number]
        if _is_nameless(trial) or is_dead(trial.user_attrs.get("process", {})):
            give_back(study, trial.number)


def _is_nameless(attempt: FrozenTrial) -> bool:
    return attempt.state == TrialState.RUNNING and "process" not in attempt.user_attrs
