"""A sweep: Optuna searches the parameters of the dimension search.

A trial searches, derives and retrains with its parameters (`pipeline.sweeps.trial`). The objective "pareto" judges it
by the task's first metric on ``val`` and by the bytes; "budget" judges by the metric alone, within a limit of bytes.

The name of a study contains a hash of all that its trials depend on. A sweep that is started again therefore continues
its own trials, and never those of other settings, data or code.
"""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from pipeline.allocation.budget import in_bytes
from pipeline.data.encoded import Encoded
from pipeline.data.schema import Field, Schema
from pipeline.embeddings.cost import full_tables
from pipeline.experiment.experiment import Experiment
from pipeline.experiment.find import check
from pipeline.sweeps import space as spaces
from pipeline.sweeps.storage import (
    INTERRUPTED,
    Direction,
    finished,
    give_back,
    is_surplus,
    open_study,
    ordinal,
    prepare,
    to_begin,
)
from pipeline.sweeps.trial import Outcome, run
from pipeline.tracking.identity import configuration_key, this_process
from pipeline.tracking.stage import beside_tracker
from pipeline.tracking.tracker import Tracker
from pipeline.workflow.code import content_key
from pipeline.workflow.params import Params
from pipeline.workflow.places import work
from pipeline.workflow.validation import validated


class Surplus(Exception):
    """Another process has begun the same trial, or the last one."""


class Sweep:
    """One Optuna study, with the parameters and the data of its trials.

    Args:
        params: all parameters.
        keys: sections of the parameters that trials may read; see `Params.only`.
        data: encoded data.

    Raises:
        ValueError: if ``sweep.space`` is wrong, or allows values that an experiment refuses.
    """

    def __init__(self, params: Params, keys: list[str], data: Encoded) -> None:
        self.params, self.keys, self.data = params, keys, data
        self.settings = params.sweep
        self.values_now = params.model_dump(mode="json")
        self.space = spaces.read(self.settings.space, self.values_now)
        self.single = self.settings.objective == "budget"
        self.full_bytes = full_tables(self.experiment({}).schema, params.dim).bytes
        self.budget = None if self.settings.budget is None else in_bytes(self.settings.budget, self.full_bytes)
        self.title = self.experiment({}).task.title
        self._check_space()
        self.name = f"{self.settings.name}-{self._key()}"
        self.work = work("sweep", self.name)

    def experiment(self, values: Mapping[spaces.Path, Any], data: Encoded | None = None) -> Experiment:
        """The experiment of a trial.

        Args:
            values: values of the searched parameters, by their place in the parameters.
            data: other data than the sweep's.

        Raises:
            ValueError: if the parameters with these values are not valid.
        """
        params = validated(Params, spaces.apply(self.values_now, values), "params.yaml")
        return Experiment(params.only(self.keys), data or self.data)

    def _check_space(self) -> None:
        """Check the ends of every range and all choices, so that no trial fails hours later on values that are refused.

        Values of one section are checked in pairs, because they may exclude each other, as a floor above the start.
        """
        data = self.data
        if data.interactions is None:  # with few ids the checks are fast; interactions must fit theirs
            small = Schema(tuple(Field(field.name, 1, field.width) for field in data.schema.fields))
            data = Encoded(data.folder, small, data.labels, data.record)
        tried = [(path, value) for path, leaf in self.space.items() for value in leaf.ends()]
        for i, one in enumerate(tried):
            for other in tried[: i + 1]:
                if other != one and (other[0] == one[0] or other[0][0] != one[0][0]):
                    continue
                values = dict([one, other])
                try:
                    check(self.experiment(values, data))
                except ValueError as error:
                    shown = " and ".join(f"{'.'.join(path)}={value}" for path, value in values.items())
                    raise ValueError(f"params.yaml: sweep.space allows {shown}, which is refused: {error}") from error

    def _key(self) -> str:
        """A short hash of all that a trial's figures depend on."""
        fixed = self.params.only(self.keys).to_dict()
        fixed.pop("sweep", None)
        for path in self.space:
            if path[:2] != spaces.CANDIDATES or path == spaces.CANDIDATES:
                fixed = spaces.apply(fixed, {path: None})
        searched = {".".join(path): repr(leaf) for path, leaf in self.space.items()}
        settings = self.settings.model_dump(include={"seed", "sampler", "objective", "budget"})
        code = self.experiment({}).code("pipeline/sweeps/trial.py")
        return content_key(code, fixed, searched, settings, inputs=[self.data.folder / "schema.json"])[:8]

    def open(self) -> optuna.Study:
        """Open the study, or create it.

        Raises:
            ValueError: if the storage cannot be used.
        """
        directions: list[Direction] = ["maximize"] if self.single else ["maximize", "minimize"]
        return open_study(self.name, directions, self.settings.sampler, self.settings.seed)

    def values(self, drawn: Mapping[str, Any]) -> dict[spaces.Path, Any]:
        """Convert Optuna's values, by name, to values by place in the parameters."""
        return {path: leaf.value(drawn[".".join(path)]) for path, leaf in self.space.items()}

    def _draw(self, trial: Trial) -> dict[spaces.Path, Any]:
        for path, leaf in self.space.items():
            name = ".".join(path)
            if isinstance(leaf, spaces.Choices):
                trial.suggest_categorical(name, leaf.labels())
            elif leaf.whole:
                trial.suggest_int(name, int(leaf.low), int(leaf.high), log=leaf.log, step=int(leaf.step or 1))
            else:
                trial.suggest_float(name, leaf.low, leaf.high, log=leaf.log, step=leaf.step)
        return self.values(trial.params)

    # --- trials

    def work_off(self, study: optuna.Study, done: Callable[[], object] = lambda: None) -> None:
        """Run trials until all are finished, or run in other processes.

        Args:
            study: the open study.
            done: called after every trial.
        """
        total = self.settings.trials
        while numbers := to_begin(study, total):
            prepare(study, numbers[0])
            current: list[Trial] = []

            def objective(trial: Trial) -> Any:
                current.append(trial)  # noqa: B023
                try:
                    trial.set_user_attr("process", this_process())
                    if is_surplus(study, trial.number, total):
                        raise Surplus
                    return self._run(trial, ordinal(study, trial.number))
                except optuna.TrialPruned:
                    raise
                except BaseException:
                    trial.set_user_attr(INTERRUPTED, True)
                    raise

            try:
                study.optimize(objective, n_trials=1, catch=(Surplus,))
            except BaseException:
                for begun in current:
                    with contextlib.suppress(Exception):  # it has ended, or its end could not be written
                        begun.set_user_attr(INTERRUPTED, True)
                    give_back(study, begun.number)
                raise
            done()
        for trial in finished(study):
            shutil.rmtree(self._folder(trial), ignore_errors=True)

    def _folder(self, trial: Trial | FrozenTrial) -> Path:
        return self.work / f"trial-{trial.user_attrs['trial']}"

    def _run(self, trial: Trial, number: int) -> Any:
        """Optuna's objective. Also stores the number of the trial, once its values are drawn, and its figures."""
        experiment = self.experiment(self._draw(trial))
        trial.set_user_attr("trial", number)
        folder = self._folder(trial)
        folder.mkdir(parents=True, exist_ok=True)

        def worth(spent: int) -> bool:
            if self.budget is None:
                return True
            trial.set_constraint("bytes", spent - self.budget)
            return spent <= self.budget

        def go_on(epoch: int, objective: float) -> bool:
            if not self.single or math.isnan(objective):  # a task may leave a metric undefined
                return True
            trial.report(objective, epoch)
            return not trial.should_prune()

        params = experiment.params.to_dict()
        with self.tracker(f"{self.name}-{configuration_key(params)[:12]}") as tracker:
            seed = experiment.params.retrain.seeds[0]
            tracked = tracker.run(folder.name, seed=seed, params=params, tags={"study": self.name})
            known = self._known(trial)
            if known is None:
                outcome = run(experiment, folder, tracked.metrics, worth, go_on)
            else:
                outcome, same = known
                tracked.tag("same_as", f"trial-{same}")
                if outcome.bytes is not None:
                    worth(outcome.bytes)
            if outcome.bytes is not None:
                tracked.metrics(0, {"bytes": outcome.bytes, "of_full": outcome.bytes / self.full_bytes})
            if outcome.objective is not None:
                tracked.metrics(0, {f"val/{experiment.task.objective}": outcome.objective})
            tracked.metrics(0, {f"dim/{field}": d for field, d in outcome.dims.items()})
            tracked.tag("ended", "diverged" if outcome.diverged else "no" if outcome.ended else "early")
        return self._result(trial, outcome)

    def _known(self, trial: Trial) -> tuple[Outcome, int] | None:
        """The outcome of an earlier trial with the same values, and its number; None if there is none.

        A training with the same values is the same training. One that was ended early is not known to its end.
        """
        values = self.values(trial.params)
        for other in finished(trial.study):
            kept = other.user_attrs
            early = other.state == TrialState.PRUNED and kept["objective"] is not None
            if not early and self.values(other.params) == values:
                ended = other.state == TrialState.COMPLETE
                outcome = Outcome(kept["dims"], kept["bytes"], kept["objective"], ended, kept.get("diverged"))
                return outcome, kept["trial"]
        return None

    def line(self, trial: FrozenTrial) -> str:
        """What a finished trial gave, in one line."""
        kept = trial.user_attrs
        worth, size = kept.get("diverged") or "over the budget, not retrained", ""
        if kept["objective"] is not None:
            early = ", ended early" if trial.state == TrialState.PRUNED else ""
            worth = f"val {self.title} {kept['objective']:.4f}{early}"
        if kept["bytes"] is not None:
            size = f", {kept['bytes']:,} bytes ({kept['bytes'] / self.full_bytes:.1%} of the full tables')"
        seconds = trial.duration.total_seconds() if trial.duration else 0.0
        return f"sweep: trial-{kept['trial']}: {worth}{size}, {seconds:.0f} s"

    def _result(self, trial: Trial, outcome: Outcome) -> Any:
        """The objective values for Optuna. Stores the outcome in the trial; raises `TrialPruned` for an early end."""
        for name in ("dims", "bytes", "objective"):
            trial.set_user_attr(name, getattr(outcome, name))
        if outcome.diverged:
            trial.set_user_attr("diverged", outcome.diverged)
            return math.nan
        if not outcome.ended:
            raise optuna.TrialPruned
        return outcome.objective if self.single else (outcome.objective, outcome.bytes)

    def tracker(self, key: str) -> Tracker:
        """A tracker for runs under the parent run of the study, which stays the same when the study is continued.

        Args:
            key: identifies the runs of this tracker.
        """
        params = self.params.only(self.keys)
        passing = {"trials", "workers"}
        configuration = {**params.to_dict(), "sweep": params.sweep.model_dump(exclude=passing), "study": self.name}
        return beside_tracker("sweep", key, self.data.raw_sha256, params, configuration, self.name)

    # --- results

    def rows(self, study: optuna.Study) -> list[dict[str, Any]]:
        """One row for each finished trial; see `pipeline.sweeps.report.Row`.

        ``best`` is true for the best trial, or for every trial on the Pareto front of objective and bytes.
        """
        rows = []
        for trial in finished(study):
            kept = trial.user_attrs
            over = any(value > 0 for value in trial.constraints.values())
            early = "early" if trial.state == TrialState.PRUNED else "complete"
            ended = "over budget" if over else "diverged" if "diverged" in kept else early
            values = {".".join(path): value for path, value in self.values(trial.params).items()}
            size = kept["bytes"]
            row = {"trial": kept["trial"], "ended": ended, "objective": kept["objective"], "bytes": size}
            share = None if size is None else size / self.full_bytes
            rows.append({**row, "of_full": share, "dims": kept["dims"], "values": values})
        whole = [row for row in rows if row["ended"] == "complete"]
        for row in rows:
            row["best"] = row in whole and not any(self._beats(other, row) for other in whole)
        return rows

    def _beats(self, one: dict[str, Any], other: dict[str, Any]) -> bool:
        """Whether the first trial dominates the second. Of two equal trials the first dominates."""
        better, size = one["objective"] - other["objective"], one["bytes"] - other["bytes"]
        if (better, size) == (0, 0):
            return bool(one["trial"] < other["trial"])
        if self.single:
            return bool(better > 0 or (better == 0 and size < 0))
        return bool(better >= 0 and size <= 0)

    def importances(self, study: optuna.Study) -> dict[str, dict[str, float]]:
        """The importance of each parameter, as a share, for each objective; empty if there are too few trials.

        Source: Hutter et al. 2014, An Efficient Approach for Assessing Hyperparameter Importance (fANOVA).
        """
        title = f"{self.title} on val"
        measured = {title: 0} if self.single else {title: 0, "bytes": 1}
        shares = {}
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=self.settings.seed)
        for name, place in measured.items():

            def target(trial: FrozenTrial, place: int = place) -> float:
                return float(trial.values[place])

            with contextlib.suppress(ValueError, RuntimeError):
                shares[name] = optuna.importance.get_param_importances(study, evaluator=evaluator, target=target)
        return shares
