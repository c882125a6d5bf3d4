"""One trial of a sweep: search, derive and retrain, with the same functions as the stages.

A trial reads the parts ``train``, ``arch`` and ``val``. Only the stage ``evaluate`` reads ``test``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.experiment.derive import derive, evidence
from pipeline.experiment.experiment import Experiment
from pipeline.experiment.find import find
from pipeline.experiment.found import Found
from pipeline.experiment.train import GoOn, train
from pipeline.training.weights import Diverged, Record
from pipeline.workflow.outputs import write_json


@dataclass(frozen=True)
class Outcome:
    """The result of a trial.

    Args:
        dims: dimension of each field; empty if the search diverged.
        bytes: size of the embedding; None if the search diverged.
        objective: the task's first metric on ``val``; None if no retraining gave one.
        ended: whether the retraining ran to its end; False if it was skipped or stopped early.
        diverged: where the search or the retraining diverged; None if it did not.
    """

    dims: dict[str, int]
    bytes: int | None
    objective: float | None = None
    ended: bool = False
    diverged: str | None = None


def run(
    experiment: Experiment,
    folder: Path,
    record: Record,
    worth: Callable[[int], bool] = lambda spent: True,
    go_on: GoOn = lambda epoch, objective: True,
) -> Outcome:
    """Search, derive, and retrain with the first seed of ``retrain.seeds``.

    Args:
        experiment: the parameters of the trial, with their data.
        folder: holds the checkpoints from which an interrupted trial continues; the caller removes it.
        record: receives the metrics of the search under ``search/`` and of the retraining under ``retrain/``.
        worth: receives the allocation's bytes; returns False to skip the retraining.
        go_on: receives the number of each retraining epoch and its objective on ``val``; returns False to stop.

    Returns:
        The dimensions, their bytes and the objective on ``val``. A trial that diverges is a result too: the sweep
        learns from it and goes on.
    """
    scores = folder / "scores.json"
    if not scores.exists():
        try:
            found = find(experiment, folder, _under("search/", record))
        except Diverged as error:
            return Outcome({}, None, diverged=f"search: {error}")
        write_json(scores, found.to_dict())
    found = Found.load(scores, experiment.schema)
    derived_from = evidence(found, experiment.schema, experiment.params.derive.budget)
    allocation, spent = derive(experiment.method, derived_from)
    if not worth(spent):
        return Outcome(allocation.dims, spent)
    seed = experiment.params.retrain.seeds[0]
    try:
        trained = train(
            experiment,
            allocation,
            seed,
            folder / "retrain.ckpt",
            title=f"{folder.name}, seed {seed}",
            record=_under("retrain/", record),
            go_on=go_on,
        )
    except Diverged as error:
        return Outcome(allocation.dims, spent, diverged=f"retraining: {error}")
    return Outcome(allocation.dims, spent, trained.validation[experiment.task.objective], trained.ended)


def _under(prefix: str, record: Record) -> Record:
    known: dict[tuple[str, ...], tuple[str, ...]] = {}  # recording is cheaper when the same tuple object comes again

    def prefixed(step: int, names: tuple[str, ...], values: Sequence[float]) -> None:
        if names not in known:
            known[names] = tuple(prefix + name for name in names)
        record(step, known[names], values)

    return prefixed
