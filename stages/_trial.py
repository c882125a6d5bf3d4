"""One trial of a sweep: search, derive and retrain with its parameters, through what the stages themselves run.

It sees the parts ``train``, ``arch`` and ``val``, as those stages do; ``test`` is for `stages.evaluate` alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.data.schema import Schema
from stages import _stage, derive, retrain, search

if TYPE_CHECKING:
    from pipeline.training.weights import Record


@dataclass(frozen=True)
class Outcome:
    """What a trial found.

    Args:
        dims: of each field.
        bytes: of the embedding.
        auc: on ``val``, of the best epoch so far; None if the allocation was not retrained.
        ended: whether all of it was done.
    """

    dims: dict[str, int]
    bytes: int
    auc: float | None = None
    ended: bool = False


def run(
    params: Mapping[str, Any],
    schema: Schema,
    folder: Path,
    record: Record,
    worth: Callable[[int], bool] = lambda spent: True,
    go_on: Callable[[int, float], bool] = lambda epoch, auc: True,
) -> Outcome:
    """Search, derive, and retrain with the first seed of ``retrain.seeds``.

    Args:
        params: all parameters.
        folder: for what lets an interrupted trial continue; the caller removes it.
        record: is told every metric of the search under ``search/``, of the retraining under ``retrain/``.
        worth: is told the allocation's bytes; False skips the retraining.
        go_on: is told every epoch of the retraining and its AUC on ``val``; False ends it.
    """
    from pipeline.training.loop import fit

    scores = folder / "scores.json"
    if not scores.exists():
        done = search.find(params, schema, folder, _under("search/", record)).record
        with _stage.whole(scores) as file:
            file.write_text(json.dumps(done))
    found = _stage.read(scores)
    allocation, spent = derive.decide(params, derive.evidence(found, schema, params["derive"]["budget"]))
    if not worth(spent):
        return Outcome(allocation.dims, spent)

    settings = params["retrain"]
    seed = settings["seeds"][0]
    module, batches = retrain.prepare(params, schema, allocation, seed, *retrain.parts())
    told = 0
    ended = True
    recorded = _under("retrain/", record)

    def watch(step: int, names: tuple[str, ...], values: Sequence[float]) -> None:
        nonlocal told, ended
        recorded(step, names, values)
        while told < len(module.history):  # several, after an interruption
            told += 1
            if not go_on(told - 1, module.history[told - 1]["auc"]):
                ended = False
                module.trainer.should_stop = True

    module.record = watch
    title = f"{folder.name}, seed {seed}"
    fit(module, batches, settings["epochs"], title, folder / "retrain.ckpt", settings["checkpoint_seconds"])
    return Outcome(allocation.dims, spent, max(entry["auc"] for entry in module.history), ended)


def _under(prefix: str, record: Record) -> Record:
    known: dict[tuple[str, ...], tuple[str, ...]] = {}  # a tuple of names that stays the same is cheap to record

    def prefixed(step: int, names: tuple[str, ...], values: Sequence[float]) -> None:
        if names not in known:
            known[names] = tuple(prefix + name for name in names)
        record(step, known[names], values)

    return prefixed
