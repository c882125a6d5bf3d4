"""One trial of a sweep: search, derive and retrain with its parameters, by the same verbs as the stages.

It sees the parts ``train``, ``arch`` and ``val``, as those stages do; only the stage ``evaluate`` opens ``test``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.experiment.derive import derive, evidence
from pipeline.experiment.experiment import Experiment
from pipeline.experiment.find import Found, find
from pipeline.experiment.train import GoOn, train
from pipeline.training.weights import Record
from pipeline.workflow.outputs import write_json


@dataclass(frozen=True)
class Outcome:
    """What a trial came to.

    Args:
        dims: of each field.
        bytes: of the embedding.
        objective: the task's first metric on ``val``; None if the allocation was not retrained.
        ended: whether all of it was done.
    """

    dims: dict[str, int]
    bytes: int
    objective: float | None = None
    ended: bool = False


def run(
    experiment: Experiment,
    folder: Path,
    record: Record,
    worth: Callable[[int], bool] = lambda spent: True,
    go_on: GoOn = lambda epoch, objective: True,
) -> Outcome:
    """Search, derive, and retrain with the first seed of ``retrain.seeds``.

    Args:
        folder: for what lets an interrupted trial continue; the caller removes it.
        record: receives every metric of the search under ``search/``, of the retraining under ``retrain/``.
        worth: receives the allocation's bytes; False skips the retraining.
        go_on: receives every epoch of the retraining and its objective on ``val``; False ends it.
    """
    scores = folder / "scores.json"
    if not scores.exists():
        write_json(scores, find(experiment, folder, _under("search/", record)).to_dict())
    found = Found.load(scores, experiment.schema)
    given = evidence(found, experiment.schema, experiment.params.derive.budget)
    allocation, spent = derive(experiment.method, given)
    if not worth(spent):
        return Outcome(allocation.dims, spent)
    seed = experiment.params.retrain.seeds[0]
    trained = train(
        experiment,
        allocation,
        seed,
        folder / "retrain.ckpt",
        title=f"{folder.name}, seed {seed}",
        record=_under("retrain/", record),
        go_on=go_on,
    )
    return Outcome(allocation.dims, spent, trained.validation[experiment.task.objective], trained.ended)


def _under(prefix: str, record: Record) -> Record:
    known: dict[tuple[str, ...], tuple[str, ...]] = {}  # a tuple of names that stays the same is cheap to record

    def prefixed(step: int, names: tuple[str, ...], values: Sequence[float]) -> None:
        if names not in known:
            known[names] = tuple(prefix + name for name in names)
        record(step, known[names], values)

    return prefixed
