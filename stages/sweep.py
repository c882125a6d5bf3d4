"""Beside the main job: search the parameters of the search itself, with Optuna. `make sweep`, not `dvc repro`, runs it.

A trial searches, derives and retrains with its parameters (`stages._trial`); its objective is the AUC on ``val``, and
the bytes: both ("pareto"), or the AUC of what stays within a number of bytes ("budget"). Writes ``artifacts/sweep/``.

A study is named after all that its trials depend on, so that a sweep which is started again continues its own trials
and never those of other settings, data or code. Trials of processes that have died are given back and done again, from
their last checkpoint on, under the number that they had.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import multiprocessing
import os
import re
import shutil
import time
import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from pipeline.data.schema import Schema
from pipeline.tracking import Tracker, configuration_key, is_dead, this_process
from stages import _model, _space, _stage, _sweep
from stages._stage import ENCODED

OUT = Path("artifacts/sweep")
RETRIES = 2  # of a trial whose process died; the third time it may be the trial's fault
HEARTBEAT_SECONDS = 30  # of trials in a database, where other machines may work too
UNPRUNED_TRIALS = 5  # that the median wants to know before any trial is ended early
NAMELESS_SECONDS = 60  # that a trial may be at work without saying for whom, its first act
POLL_SECONDS = 0.2
SAMPLERS = {
    "tpe": optuna.samplers.TPESampler,
    "random": optuna.samplers.RandomSampler,
    "nsga2": optuna.samplers.NSGAIISampler,
}


class _Surplus(Exception):
    """Another worker has begun the last trial."""


class Sweep:
    """One study and what its trials are made of.

    Args:
        params: of the stage.
        schema: of the encoded data.
    """

    def __init__(self, params: dict[str, Any], schema: Schema) -> None:
        self.params, self.schema = params, schema
        self.settings = params["sweep"]
        self.space = _space.read(self.settings["space"], params)
        self.single = self.settings["objective"] == "budget"
        self.full_bytes, self.budget = self._limits()
        self._check_space()
        if not re.fullmatch(r"[\w.\-]+", self.settings["name"]):
            name = self.settings["name"]
            raise ValueError(f"params.yaml: sweep: name must be of letters, digits, '_', '.', '-', however {name!r}")
        self.name = f"{self.settings['name']}-{self._key()}"
        self.work = _stage.root() / ".pipeline/sweep" / self.name

    def _limits(self) -> tuple[int, int | None]:
        from pipeline.allocation.budget import in_bytes
        from pipeline.embeddings.cost import full_tables

        full, budget = full_tables(self.schema, self.params["dim"]).bytes, self.settings["budget"]
        if self.single == (budget is None):
            wanted = "needs a sweep.budget" if self.single else "has no use for a sweep.budget; set it to null"
            raise ValueError(f"params.yaml: sweep: objective {self.settings['objective']!r} {wanted}")
        return full, None if budget is None else in_bytes(budget, full)

    def _check_space(self) -> None:
        """Try the ends of all that is searched: a sweep must not find in its last hour what cannot be.

        Those of one section together, for they may exclude each other, as a floor above the start does.
        """
        from stages.search import check

        small = Schema(tuple(type(field)(field.name, 1, field.width) for field in self.schema.fields))
        tried = [(path, value) for path, found in self.space.items() for value in found.ends()]
        for i, one in enumerate(tried):
            for other in tried[: i + 1]:
                if other != one and (other[0] == one[0] or other[0][0] != one[0][0]):
                    continue
                values = dict([one, other])
                try:
                    check(_stage.checked(_space.apply(self.params, values)), small)
                except ValueError as error:
                    given = " and ".join(f"{'.'.join(path)}={value}" for path, value in values.items())
                    raise ValueError(f"params.yaml: sweep: space allows {given}, however: {error}") from error

    def _key(self) -> str:
        """All that a trial's figures depend on, in short."""
        fixed = {section: value for section, value in self.params.items() if section != "sweep"}
        for path in self.space:
            if path[:2] != _space.CANDIDATES or path == _space.CANDIDATES:
                fixed = _space.apply(fixed, {path: None})
        searched = {".".join(path): repr(found) for path, found in self.space.items()}
        chosen = {name: self.settings[name] for name in ("seed", "sampler", "objective", "budget")}
        files = {path for stage in ("search", "derive", "retrain") for path in _stage.code(stage)}
        contents = {path: Path(path).read_text() for path in sorted(files | {str(ENCODED / "schema.json")})}
        return configuration_key({"fixed": fixed, "space": searched, "how": chosen, "files": contents})[:8]

    # --- the study

    def open(self) -> optuna.Study:
        """Under a lock: two processes that make the same database do not bear each other."""
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.work.mkdir(parents=True, exist_ok=True)
        with (self.work / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                return optuna.create_study(
                    storage=self._storage(),
                    study_name=self.name,
                    load_if_exists=True,
                    directions=["maximize"] if self.single else ["maximize", "minimize"],
                    sampler=_ByTrial(self.settings["sampler"], self.settings["seed"]),
                    pruner=optuna.pruners.MedianPruner(n_startup_trials=UNPRUNED_TRIALS),
                )
            except (ImportError, ValueError, OSError, SQLAlchemyError) as error:
                shown = re.sub(r"//[^/@]*@", "//", str(self.settings["storage"]))  # no password in a message
                why = " ".join(str(error).split())[:300]
                raise ValueError(f"params.yaml: sweep: storage {shown} is of no use: {why}") from error

    def _storage(self) -> optuna.storages.BaseStorage:
        url = self.settings["storage"]
        if url is None:
            place = _stage.root() / ".pipeline/optuna" / f"{self.name}.journal"
            place.parent.mkdir(parents=True, exist_ok=True)
            backend = JournalFileBackend(str(place), _Lock(place.with_suffix(".lock")))  # type: ignore[arg-type]
            return optuna.storages.JournalStorage(backend)
        return optuna.storages.RDBStorage(
            url,
            heartbeat_interval=HEARTBEAT_SECONDS,
            grace_period=4 * HEARTBEAT_SECONDS,
            heartbeat_stale_trial_callback=retry,
        )

    def values(self, drawn: Mapping[str, Any]) -> dict[_space.Path, Any]:
        """A trial's values, by place in the parameters, from Optuna's, by name."""
        return {path: found.value(drawn[".".join(path)]) for path, found in self.space.items()}

    def _draw(self, trial: Trial) -> dict[_space.Path, Any]:
        for path, found in self.space.items():
            name = ".".join(path)
            if isinstance(found, _space.Choices):
                trial.suggest_categorical(name, found.labels())
            elif found.whole:
                trial.suggest_int(name, int(found.low), int(found.high), log=found.log, step=int(found.step or 1))
            else:
                trial.suggest_float(name, found.low, found.high, log=found.log, step=found.step)
        return self.values(trial.params)

    # --- trials

    def work_off(self, study: optuna.Study) -> None:
        """Run trials until as many as the sweep may have are finished or at work."""
        while counted(study) < self.settings["trials"]:
            current: list[int] = []

            def objective(trial: Trial) -> Any:
                current.append(trial.number)  # noqa: B023
                trial.set_user_attr("process", this_process())
                if counted(study, before=trial.number, waiting=True) >= self.settings["trials"]:
                    raise _Surplus
                trial.set_user_attr("trial", ordinal(study, trial.number))
                return self._run(trial)

            try:
                study.optimize(objective, n_trials=1, catch=(_Surplus,))
            except BaseException:
                for number in current:
                    give_back(study, number, ours=True)
                raise
        for trial in finished(study):
            shutil.rmtree(self._folder(trial), ignore_errors=True)

    def _folder(self, trial: Trial | FrozenTrial) -> Path:
        return self.work / f"trial-{trial.user_attrs['trial']}"

    def _run(self, trial: Trial) -> Any:
        """The objective. Keeps in the trial what the tables show."""
        from stages import _trial

        began = time.monotonic()
        values = self._draw(trial)
        params = _space.apply(self.params, values)
        folder = self._folder(trial)
        folder.mkdir(parents=True, exist_ok=True)
        seed = params["retrain"]["seeds"][0]

        def worth(spent: int) -> bool:
            if self.budget is None:
                return True
            trial.set_constraint("bytes", spent - self.budget)
            return spent <= self.budget

        def go_on(epoch: int, auc: float) -> bool:
            if not self.single or math.isnan(auc):
                return True
            trial.report(auc, epoch)
            return not trial.should_prune()

        name = f"trial-{trial.user_attrs['trial']}"
        with self.tracker(f"{self.name}-{configuration_key(params)[:12]}") as tracker:
            tracked = tracker.run(name, seed=seed, params=params, tags={"study": self.name})
            found = _trial.run(params, self.schema, folder, tracked.metrics, worth, go_on)
            figures = {"bytes": found.bytes, "of_full": found.bytes / self.full_bytes}
            tracked.metrics(0, figures if found.auc is None else {**figures, "val/auc": found.auc})
            tracked.metrics(0, {f"dim/{field}": d for field, d in found.dims.items()})
            tracked.tag("ended", "early" if not found.ended else "no")
        trial.set_user_attr("dims", found.dims)
        trial.set_user_attr("bytes", found.bytes)
        trial.set_user_attr("auc", found.auc)
        auc = "over the budget, not retrained" if found.auc is None else f"val AUC {found.auc:.4f}"
        early = ", ended early" if found.auc is not None and not found.ended else ""
        print(
            f"sweep: {name}: {auc}{early}, {found.bytes:,} bytes ({found.bytes / self.full_bytes:.1%} of the full "
            f"tables'), {time.monotonic() - began:.0f} s",
            flush=True,
        )
        if found.auc is not None and math.isnan(found.auc):
            trial.set_user_attr("diverged", True)
            return math.nan
        if not found.ended:
            raise optuna.TrialPruned
        return found.auc if self.single else (found.auc, found.bytes)

    def tracker(self, key: str) -> Tracker:
        """For runs under the study's own parent, which stays the same when the study goes on."""
        passing = ("trials", "storage", "workers")
        lasting = {name: value for name, value in self.settings.items() if name not in passing}
        given = {**self.params, "sweep": lasting, "study": self.name}
        return _stage.tracker("sweep", key, given=given, title=self.name)

    # --- results

    def rows(self, study: optuna.Study) -> list[dict[str, Any]]:
        """What there is to say of every finished trial. ``best``: no other is better, or both better and smaller."""
        rows = []
        for trial in finished(study):
            kept = trial.user_attrs
            over = any(value > 0 for value in trial.constraints.values())
            early = "early" if trial.state == TrialState.PRUNED else "complete"
            ended = "over budget" if over else "diverged" if "diverged" in kept else early
            values = {".".join(path): value for path, value in self.values(trial.params).items()}
            row = {"trial": kept["trial"], "ended": ended, "val_auc": kept["auc"], "bytes": kept["bytes"]}
            rows.append({**row, "of_full": kept["bytes"] / self.full_bytes, "dims": kept["dims"], "values": values})
        whole = [row for row in rows if row["ended"] == "complete"]
        for row in rows:
            row["best"] = row in whole and not any(self._beats(other, row) for other in whole)
        return rows

    def _beats(self, one: dict[str, Any], other: dict[str, Any]) -> bool:
        """Whether one trial makes the other superfluous; of equal ones the first does."""
        auc, size = one["val_auc"] - other["val_auc"], one["bytes"] - other["bytes"]
        if (auc, size) == (0, 0):
            return bool(one["trial"] < other["trial"])
        if self.single:
            return bool(auc > 0 or (auc == 0 and size < 0))
        return bool(auc >= 0 and size <= 0)

    def importances(self, study: optuna.Study) -> dict[str, dict[str, float]]:
        """How much of what is measured each parameter decides, a share; empty where there are too few trials to say."""
        measured = {"AUC on val": 0} if self.single else {"AUC on val": 0, "bytes": 1}
        found = {}
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=self.settings["seed"])
        for name, place in measured.items():

            def target(trial: FrozenTrial, place: int = place) -> float:
                return float(trial.values[place])

            with contextlib.suppress(ValueError, RuntimeError):
                found[name] = optuna.importance.get_param_importances(study, evaluator=evaluator, target=target)
        return found


class _Lock:
    """Of a journal; ends with its process. After a kill Optuna's own would keep everybody waiting for 30 s."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def acquire(self) -> bool:
        self._file = self._path.open("w")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        return True

    def release(self) -> None:
        self._file.close()


class _ByTrial(BaseSampler):
    """Draws that depend on the seed, the trial and those before it: an interrupted study goes on as if it had not been.

    Optuna's samplers, made again from the same seed, would draw what they drew at first.
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


# --- trials, their numbers and their ends


def counted(study: optuna.Study, *, before: int | None = None, waiting: bool = False) -> int:
    """Trials that are finished or at work, perhaps also those ``waiting`` to be done again.

    A trial is surplus if all that the sweep may have are numbered below it: numbers are the storage's, so that of two
    processes that begin a trial at once one alone takes the last.
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
    return sum("retry" not in trial.user_attrs for trial in trials[:number])


def give_back(study: optuna.Study, number: int, ours: bool = False) -> None:
    """End a trial and let it be done again: ``ours``, or that of a dead process, which another may have ended."""
    try:
        study.tell(number, state=TrialState.FAIL)
    except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
        if not ours or study.get_trials(deepcopy=False)[number].state != TrialState.FAIL:
            return
    retry(study, study.get_trials(deepcopy=False)[number])


def retry(study: optuna.Study, trial: FrozenTrial) -> None:
    """Put a trial's parameters in the queue; not those of one that had not begun, or that ends whoever touches it."""
    name, times = trial.user_attrs.get("trial"), trial.user_attrs.get("retry", 0) + 1
    others = [t.user_attrs for t in study.get_trials(deepcopy=False) if t.user_attrs.get("trial") == name]
    if name is not None and times <= RETRIES and max(other.get("retry", 0) for other in others) < times:
        study.enqueue_trial(trial.params, user_attrs={"trial": name, "retry": times})


def reap(study: optuna.Study) -> None:
    """Give back the trials of dead processes: of this machine, and where the storage has heartbeats, of any."""
    optuna.storages.fail_stale_trials(study)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        process, begun = trial.user_attrs.get("process"), trial.datetime_start
        nameless = process is None and begun is not None and (datetime.now() - begun).total_seconds() > NAMELESS_SECONDS
        if nameless or is_dead(process or {}):
            give_back(study, trial.number)


# --- processes


def run() -> None:
    started = time.monotonic()
    params = _stage.params("sweep")
    _model.tune(params["sweep"]["workers"])
    if params["sweep"]["workers"] > 1:  # what the workers are forked from; its imports take as long as ours
        multiprocessing.get_context("forkserver").set_forkserver_preload(["stages.sweep", "pipeline.lit"])
        forkserver.ensure_running()
    sweep = Sweep(params, Schema.load(ENCODED / "schema.json"))
    study = sweep.open()
    reap(study)
    total, before = sweep.settings["trials"], len(finished(study))
    print(f"sweep: study {sweep.name}, {before} of {total} trials finished", flush=True)
    if sweep.settings["workers"] == 1:
        while len(finished(study)) < total:
            sweep.work_off(study)
            reap(study)
            if counted(study) >= total > len(finished(study)):  # others are at work elsewhere
                time.sleep(POLL_SECONDS)
    else:
        _employ(sweep, study)

    rows, importances = sweep.rows(study), sweep.importances(study)
    with _stage.whole(OUT) as folder:
        lines = _sweep.write(folder, sweep.name, sweep.params, sweep.space, rows, importances, sweep.budget)
    with sweep.tracker(sweep.name) as tracker:
        best = _sweep.chosen(rows)
        figures = {"trials": len(rows)} | ({} if best is None else {"val/auc": best["val_auc"], "bytes": best["bytes"]})
        tracker.parent(metrics=figures, tags={"study": sweep.name}, artifacts=sorted(OUT.rglob("*.*")))
    print("\n".join(lines))
    print(f"sweep: {len(rows) - before} trials, {time.monotonic() - started:.1f} s")


def _employ(sweep: Sweep, study: optuna.Study) -> None:
    """Let processes of their own do the trials; replace those that are killed.

    They are forked from one that has imported what they need, which takes seconds, and has run nothing.

    Raises:
        ValueError: if a worker ends with an error, which it has printed, or worker after worker is killed.
    """
    total = sweep.settings["trials"]
    context = multiprocessing.get_context("forkserver")
    workers: list[ForkServerProcess] = []
    ended: list[ForkServerProcess] = []
    killed, done = 0, len(finished(study))
    try:
        while done < total:
            if ended or not workers:
                for _ in range(min(total - counted(study), sweep.settings["workers"] - len(workers))):
                    workers.append(context.Process(target=_worker, args=(sweep, os.getpid())))
                    workers[-1].start()
            time.sleep(POLL_SECONDS)
            ended = [worker for worker in workers if not worker.is_alive()]
            if not ended and workers:
                continue
            workers = [worker for worker in workers if worker not in ended]
            if any(worker.exitcode == 1 for worker in ended):
                raise ValueError("a worker has ended with the error above; correct it and start the sweep again")
            reap(study)
            now = len(finished(study))
            killed = sum(worker.exitcode != 0 for worker in ended) + (killed if now == done else 0)
            done = now
            if killed > RETRIES:
                raise ValueError(
                    f"{killed} workers were killed and no trial finished in between; "
                    "is there memory enough? lower sweep.workers or search.batch_size in params.yaml"
                )
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join()


def _worker(sweep: Sweep, employer: int) -> None:
    _stage.end_with(employer)
    _stage.main(lambda: sweep.work_off(sweep.open()), arguments=True)  # the ones it was started with


if __name__ == "__main__":
    from stages import sweep  # not this file again: workers find what they are given there

    _stage.main(sweep.run)
