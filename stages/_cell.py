"""One cell of a study: for every seed search, derive, retrain all arms, and open ``test`` for each trained model.

Nothing that ``test`` says is fed back into anything. Every search and every training that is done is kept in ``work``
until the cell is complete, so that a cell which was interrupted goes on where it stood.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.data.schema import Schema
from pipeline.workflow.plug import plug
from stages import _stage, derive, retrain, search
from stages._study import Cell, merged

if TYPE_CHECKING:
    from pipeline.allocation.allocation import Allocation
    from pipeline.allocation.evidence import Evidence
    from pipeline.tracking import Run, Tracker
    from pipeline.training.weights import LitCTR


TUNING_SEED = 1000  # of all that is tried before the seeds of the study


def run(cell: Cell, encoded: Path, work: Path, tracker: Tracker) -> dict[str, Any]:
    """Run a cell, or what is left of it.

    Args:
        encoded: folder of the encoded data.
        work: folder of finished pieces and checkpoints; the caller removes it.

    Returns:
        ``rows``, one per seed, budget and arm; ``searches``, one per seed, or more where budgets have settings or
        targets of their own; ``tried``, one per setting and budget; ``fields``, their names in order.
    """
    schema = Schema.load(encoded / "schema.json")
    settings, tried = cell.settings(), []
    best = dict.fromkeys(map(repr, cell.budgets), 0)  # of the settings, by budget
    if len(settings) > 1:
        tried = _tried(settings, schema, encoded, work / f"seed-{TUNING_SEED}", tracker)
        for budget in cell.budgets:
            of_budget = [trial for trial in tried if trial["budget"] == budget]
            able = [trial for trial in of_budget if trial["val_auc"] is not None]
            if not able:
                raise ValueError(f"no setting of {cell.name} keeps the budget {budget}: {of_budget[0]['problem']}")
            best[repr(budget)] = max(able, key=lambda trial: trial["val_auc"])["setting"]
    searches, rows = [], []
    for seed in cell.seeds:
        place, known = work / f"seed-{seed}", set()
        for budget in cell.budgets:
            number = best[repr(budget)]
            one = settings[number]
            found = _found(one, _first_alike(settings, number), schema, encoded, seed, budget, place, tracker)
            if found is not None and found["summary"]["run"] not in known:
                known.add(found["summary"]["run"])
                searches.append({"seed": seed} | found["summary"])
            for arm, allocation in _allocations(one, schema, seed, budget, found).items():
                name = f"seed-{seed}/{arm}" + ("" if budget is None else f"-{budget}")
                row = _tested(one, schema, encoded, seed, arm, budget, allocation, work, name, tracker)
                rows.append(row | {"setting": number, "search_seconds": found and found["summary"]["seconds"]})
    return {"fields": list(schema.names), "searches": searches, "tried": tried, "rows": rows}


def _tried(
    settings: Sequence[Cell], schema: Schema, encoded: Path, work: Path, tracker: Tracker
) -> list[dict[str, Any]]:
    """Every setting under every budget, searched and trained once, judged on ``val``.

    One that can't keep a budget has None for its AUC there, and why in ``problem``.
    """
    from pipeline.allocation.budget import TooFewBytes

    tried: list[dict[str, Any]] = []
    for number, cell in enumerate(settings):
        for budget in cell.budgets:
            done = work / f"tried-{number}-{budget}.trial"
            if not done.exists():
                first = _first_alike(settings, number)
                alone = replace(cell, arms=["searched"])
                try:
                    found = _found(cell, first, schema, encoded, TUNING_SEED, budget, work, tracker)
                    [allocation] = _allocations(alone, schema, TUNING_SEED, budget, found).values()
                except TooFewBytes as error:
                    tried.append({"setting": number, "budget": budget, "val_auc": None, "problem": str(error)})
                    continue
                title, checkpoint = f"{cell.name}, setting {number}, budget {budget}", done.with_suffix(".ckpt")
                tracked = tracker.run(f"tried/{number}-{budget}", seed=TUNING_SEED, params=cell.params)
                module = _fitted(cell, schema, encoded, TUNING_SEED, allocation, checkpoint, title, tracked)
                found_auc = _val_auc(module, encoded)
                tracked.metrics(0, {"val/auc": found_auc})
                tracked.end()
                trial = {"setting": number, "budget": budget, "val_auc": found_auc, "run": tracked.name}
                with _stage.whole(done) as file:
                    file.write_text(json.dumps(trial))
                checkpoint.unlink(missing_ok=True)
            tried.append(_stage.read(done))
    return tried


def _first_alike(settings: Sequence[Cell], number: int) -> int:
    """Number of the first setting with the same search; they may differ in the retraining alone."""

    def searched(cell: Cell) -> dict[str, Any]:
        return {name: value for name, value in cell.search.items() if name != "retrain"}

    return next(n for n, cell in enumerate(settings) if searched(cell) == searched(settings[number]))


def _found(
    cell: Cell, number: int, schema: Schema, encoded: Path, seed: int, budget: Any, work: Path, tracker: Tracker
) -> dict[str, Any] | None:
    """The contents of ``scores.json``, with a ``summary``: seconds, memory, the choice without any other budget.

    Args:
        number: of the first of the cell's settings whose search this is.
        budget: for a method whose search depends on the bytes that it is for.
    """
    import pipeline.training.loop  # noqa: F401 - its own memory is not the search's

    if not cell.searches:
        return None
    name = "-".join(["search", *([str(number)] if number else []), *([str(budget)] if cell.targets else [])])
    done = work / f"{name}.scores"
    if not done.exists():
        params = {**cell.search, "search": {**cell.search["search"], "seed": seed}}
        if cell.targets and budget is not None:
            params["method"] = merged(params["method"], {"options": {params["method"]["name"]: {"target": budget}}})
        began, before = time.monotonic(), _peak_mib()
        whole = not (work / name).exists()
        tracked = tracker.run(f"{name}/seed-{seed}", seed=seed, params=params)
        found = search.find(params, schema, work / name, tracked.metrics, encoded, cell.share).record
        wanted = budget if cell.targets else None
        allocation, spent = derive.decide(params, derive.evidence(found, schema, wanted))
        found["summary"] = {
            "seconds": time.monotonic() - began if whole else None,
            "peak_mib": None if before is None else (_peak_mib() or before) - before,
            "dims": allocation.dims,
            "bytes": spent,
            "undecided": found["undecided"],
            "training_bytes": found.get("training_bytes"),
            "run": tracked.name,
        }
        tracked.metrics(0, {f"dim/{name}": d for name, d in allocation.dims.items()})
        tracked.end()
        with _stage.whole(done) as file:
            file.write_text(json.dumps(found))
        shutil.rmtree(work / name, ignore_errors=True)
    result: dict[str, Any] = _stage.read(done)
    return result


def _allocations(
    cell: Cell, schema: Schema, seed: int, budget: Any, found: Mapping[str, Any] | None
) -> dict[str, Allocation]:
    """The allocation of every arm under a budget. Arms that have no size of their own come with the first one alone."""
    from pipeline.allocation.allocation import Allocation

    chosen: dict[str, Allocation] = {}
    match: int | None = None
    given = _evidence(cell, schema, seed, budget) if found is None else derive.evidence(found, schema, budget)
    if {"searched", "uniform", "random"} & set(cell.arms):
        searched, match = derive.decide(cell.params, given)
        if "searched" in cell.arms:
            chosen["searched"] = searched
    first = budget == cell.budgets[0]
    for arm in cell.arms:
        if arm in ("uniform", "random"):
            assert match is not None
            chosen[arm] = derive.control(arm, given, seed, match)
        elif arm == "full" and first:
            chosen[arm] = plug("methods", arm).derive(given)
        elif arm == "alone" and first:
            schema.check_names([cell.alone or ""])
            dims = {name: given.dim if name == cell.alone else 0 for name in schema.names}
            chosen[arm] = Allocation("full", dims)
    return chosen


def _evidence(cell: Cell, schema: Schema, seed: int, budget: Any) -> Evidence:
    """What arms are derived from where nothing was searched."""
    rows = search.candidates(cell.params, schema)
    features = {name: {"candidates": row} for name, row in zip(schema.names, rows, strict=True)}
    record = {"method": cell.params["method"]["name"], "seed": seed, "dim": cell.params["dim"], "features": features}
    return derive.evidence(record, schema, budget)


def _tested(
    cell: Cell,
    schema: Schema,
    encoded: Path,
    seed: int,
    arm: str,
    budget: Any,
    allocation: Allocation,
    work: Path,
    name: str,
    tracker: Tracker,
) -> dict[str, Any]:
    """One arm, trained and tested. One that was trained before under another name is not trained again."""
    from pipeline.data.split import Split
    from pipeline.embeddings.cost import cost, full_tables, training_bytes
    from pipeline.metrics.auc import auc
    from pipeline.metrics.probability import logloss
    from pipeline.models.model import predict

    place = {"seed": seed, "arm": arm, "budget": budget, "dims": allocation.dims}
    done, checkpoint = work / f"{name}.json", work / f"{name}.ckpt"
    built = hashlib.sha256(json.dumps([allocation.digest(), cell.params["retrain"]]).encode()).hexdigest()
    for other in sorted((work / f"seed-{seed}").glob("*.json")):
        kept = _stage.read(other)
        if kept["built"] == built:
            return {**kept, **place}
    params = {**cell.params, "retrain": {**cell.params["retrain"], "seeds": [seed]}}
    began, whole = time.monotonic(), not checkpoint.exists()
    tracked = tracker.run(name.replace("seed-", "retrain/seed-"), seed=seed, params=params, tags={"allocation": arm})
    module = _fitted(cell, schema, encoded, seed, allocation, checkpoint, f"{cell.name}, {name}", tracked)
    seconds = time.monotonic() - began
    test = Split.load(encoded, "test")
    labels, logits = test.all_labels(), predict(module.model, test)
    size = cost(module.model.embedding.packed())
    figures = {"auc": auc(labels, logits), "logloss": logloss(labels, logits), "bytes": size.bytes}
    tracked.metrics(0, {f"test/{key}": value for key, value in figures.items()})
    tracked.metrics(0, {f"dim/{field}": d for field, d in allocation.dims.items()})
    tracked.end()
    row = {
        **place,
        **figures,
        "built": built,
        "of_full": size.bytes / full_tables(schema, params["dim"]).bytes,
        "table_params": size.table_params,
        "training_bytes": training_bytes(module.model.embedding),
        "val_auc": _val_auc(module, encoded),
        "epochs": len(module.history),
        "seconds": seconds if whole else None,  # of one that was interrupted nobody knows
        "run": tracked.name,
    }
    with _stage.whole(done) as file:
        file.write_text(json.dumps(row))
    checkpoint.unlink(missing_ok=True)
    print(f"{cell.name}: {name}: AUC {figures['auc']:.4f}, {size.bytes:,} bytes, {seconds:.0f} s", flush=True)
    return row


def _fitted(
    cell: Cell,
    schema: Schema,
    encoded: Path,
    seed: int,
    allocation: Allocation,
    checkpoint: Path,
    title: str,
    tracked: Run,
) -> LitCTR:
    """A fresh model of an allocation, trained, with its best weights, in the form that is served."""
    from pipeline.training.loop import fit

    settings = cell.params["retrain"]
    module, batches = retrain.prepare(cell.params, schema, allocation, seed, *retrain.parts(encoded))
    module.record = tracked.metrics
    fit(module, batches, settings["epochs"], title, checkpoint, settings["checkpoint_seconds"])
    module.model.load_state_dict(module.best)
    module.model.embedding.finish()
    return module


def _val_auc(module: LitCTR, encoded: Path) -> float:
    """Of what `_fitted` returns: the form that is served, which for some methods is not that of the best epoch."""
    from pipeline.data.split import Split
    from pipeline.metrics.auc import auc
    from pipeline.models.model import predict

    validation = Split.load(encoded, "val")
    return auc(validation.all_labels(), predict(module.model, validation))


def _peak_mib() -> float | None:
    """Of this process, until now; None where the system does not tell."""
    status = Path("/proc/self/status")
    return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024 if status.exists() else None
