"""One cell of a study: for every seed search, derive, train all arms, and evaluate each trained model on ``test``.

No result on ``test`` influences a choice. Finished searches and trainings stay in the work folder until the cell is
complete, so an interrupted cell continues where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.budget import TooFewBytes
from pipeline.data.encoded import Encoded
from pipeline.data.schema import Schema
from pipeline.data.split import Split
from pipeline.embeddings.cost import full_tables
from pipeline.experiment.derive import control, derive, evidence
from pipeline.experiment.experiment import Experiment
from pipeline.experiment.find import find, nothing_found
from pipeline.experiment.found import Found
from pipeline.experiment.measure import Measured, measure
from pipeline.experiment.method import Method
from pipeline.experiment.train import Trained, train
from pipeline.metrics.difference import encoded, sketch
from pipeline.models.retriever import AnyModel
from pipeline.studies import retrieved
from pipeline.studies.grid import READ, REFERENCES, Cell
from pipeline.tracking.tracker import Run, Tracker
from pipeline.workflow.outputs import read_json, write_json
from pipeline.workflow.overlay import merged
from pipeline.workflow.params import Params
from pipeline.workflow.validation import validated

TUNING_SEED = 1000  # of the settings that are tried before the seeds of the study

log = logging.getLogger("pipeline.studies")


class Played(NamedTuple):
    """How agents are measured who play with the tables of a trained model; see `pipeline.studies.chained.PLAYED`.

    Args:
        titles: name -> title of the metrics.
        measure: (cell, data, model, seed, checkpoint, record) -> the metrics, and other values of the row.
    """

    titles: Mapping[str, str]
    measure: Callable[..., tuple[dict[str, float], dict[str, Any]]]


@dataclass(frozen=True)
class Searched:
    """A finished search.

    Args:
        found: its findings.
        summary: its duration, memory, chosen dimensions, and bytes; None if the cell does not search.
    """

    found: Found
    summary: Mapping[str, Any] | None = None


def run(cell: Cell, data: Encoded, work: Path, tracker: Tracker, played: Played | None = None) -> dict[str, Any]:
    """Run a cell, or the rest of an interrupted one.

    Args:
        cell: its definition.
        data: encoded data.
        work: folder of finished pieces and checkpoints; the caller removes it.
        tracker: records a run for each search and each training.
        played: of a cell whose entry says ``played``: further metrics of a trained model.

    Returns:
        ``rows``, one per seed, budget and arm; ``searches``, one per seed, or several if the search depends on the
        budget; ``tried``, one per setting and budget; ``impossible``, by budget that the method cannot keep the reason;
        ``fields``, their names in order; ``metrics``, name -> title; ``objective``, the name of the metric that judges;
        and ``unit``, see `Difference`.

    Raises:
        ValueError: if no setting keeps a budget, or all budgets are too small.
    """
    return _CellRun(cell, data, work, tracker, played).run()


class _CellRun:
    """A run of a cell; see `run`."""

    def __init__(self, cell: Cell, data: Encoded, work: Path, tracker: Tracker, played: Played | None) -> None:
        self.cell, self.data, self.work, self.tracker, self.played = cell, data, work, tracker, played
        self.settings = cell.settings()
        experiment = Experiment(cell.params.only(READ), data)
        self.task = experiment.task
        trains = REFERENCES not in cell.entry.arms  # references need no backbone
        self.schema = experiment.schema if trains else data.schema

    def run(self) -> dict[str, Any]:
        if REFERENCES in self.cell.entry.arms:
            return self._about([], [], retrieved.references(self._experiment(), self.cell.seeds, self._recorded))
        tried = self._tried() if len(self.settings) > 1 else []
        best = {repr(budget): self._best(tried, budget) for budget in self.cell.entry.budgets}
        searches: list[dict[str, Any]] = []
        rows: list[dict[str, Any]] = []
        impossible: dict[str, str] = {}  # budget, as text -> why
        for seed in self.cell.seeds:
            known = set()
            for budget in self.cell.entry.budgets:
                number = best[repr(budget)]
                one = self.settings[number]
                searched = self._searched(number, seed, budget, self.work / f"seed-{seed}")
                summary = searched.summary
                if summary is not None and summary["run"] not in known:
                    known.add(summary["run"])
                    searches.append({"seed": seed} | dict(summary))
                try:
                    allocations = _allocations(one, self.schema, seed, budget, searched)
                except TooFewBytes as error:
                    if {"full", "alone"} & set(one.entry.arms):  # these come with the first budget
                        raise
                    impossible[str(budget)] = str(error)
                    continue
                for arm, allocation in allocations.items():
                    name = f"seed-{seed}/{arm}" + ("" if budget is None else f"-{budget}")
                    row = self._tested(one, seed, arm, budget, allocation, name)
                    rows.append(row | {"setting": number, "search_seconds": summary and summary["seconds"]})
        rows = [row for row in rows if str(row["budget"]) not in impossible]  # a budget needs all seeds
        if impossible and not rows:
            raise ValueError(f"{self.cell.name} keeps none of its budgets: {next(iter(impossible.values()))}")
        return self._about(searches, tried, rows) | {"impossible": impossible}

    def _about(
        self, searches: list[dict[str, Any]], tried: list[dict[str, Any]], rows: list[dict[str, Any]]
    ) -> dict[str, Any]:
        """The result of the cell; see `run`."""
        metrics = {**self.task.metrics, **({} if self.played is None else self.played.titles)}
        about = {"metrics": metrics, "objective": self.task.objective, "unit": self.task.unit, "impossible": {}}
        return {**about, "fields": list(self.schema.names), "searches": searches, "tried": tried, "rows": rows}

    def _experiment(self) -> Experiment:
        return Experiment(self.cell.params.only(READ), self.data)

    def _recorded(self, name: str, metrics: dict[str, float]) -> str:
        """The name of a run with the metrics of a reference."""
        tracked = self.tracker.run(f"references/{name}", params=_recorded(self.cell), tags={"reference": name})
        tracked.metrics(0, {f"test/{metric}": value for metric, value in metrics.items()})
        tracked.end()
        return tracked.name

    # --- settings tried first

    def _tried(self) -> list[dict[str, Any]]:
        """Search and train every setting once for every budget, and evaluate it on ``val``.

        If a setting cannot keep a budget, its ``objective`` is None and ``problem`` contains the reason.
        """
        tried: list[dict[str, Any]] = []
        work = self.work / f"seed-{TUNING_SEED}"
        for number, cell in enumerate(self.settings):
            for budget in cell.entry.budgets:
                done = work / f"tried-{number}-{budget}.trial"
                if not done.exists():
                    try:
                        searched = self._searched(number, TUNING_SEED, budget, work)
                        alone = replace(cell, entry=cell.entry.model_copy(update={"arms": ("searched",)}))
                        allocations = _allocations(alone, self.schema, TUNING_SEED, budget, searched)
                    except TooFewBytes as error:
                        tried.append({"setting": number, "budget": budget, "objective": None, "problem": str(error)})
                        continue
                    tracked = self.tracker.run(f"tried/{number}-{budget}", seed=TUNING_SEED, params=_recorded(cell))
                    title, checkpoint = f"{cell.name}, setting {number}, budget {budget}", done.with_suffix(".ckpt")
                    trained = self._trained(cell, TUNING_SEED, allocations["searched"], checkpoint, title, tracked)
                    objective = trained.validation[self.task.objective]
                    tracked.metrics(0, {f"val/{self.task.objective}": objective})
                    tracked.end()
                    trial = {"setting": number, "budget": budget, "objective": objective, "run": tracked.name}
                    write_json(done, trial)
                    checkpoint.unlink(missing_ok=True)
                tried.append(read_json(done))
        return tried

    def _best(self, tried: list[dict[str, Any]], budget: Any) -> int:
        """Number of the setting that is best on ``val`` for a budget."""
        of_budget = [trial for trial in tried if trial["budget"] == budget]
        able = [trial for trial in of_budget if trial["objective"] is not None]
        if of_budget and not able:
            raise ValueError(f"no setting of {self.cell.name} keeps the budget {budget}: {of_budget[0]['problem']}")
        return int(max(able, key=lambda trial: trial["objective"])["setting"]) if able else 0

    def _first_alike(self, number: int) -> int:
        """Number of the first setting with the same search, since some settings differ only in the retraining."""

        def searched(cell: Cell) -> dict[str, Any]:
            return cell.setting.search.only([key for key in READ if key != "retrain"]).to_dict()

        return next(n for n, cell in enumerate(self.settings) if searched(cell) == searched(self.settings[number]))

    # --- searches

    def _searched(self, number: int, seed: int, budget: Any, work: Path) -> Searched:
        """The finished search of a setting. ``budget`` matters only to methods whose search has a target in bytes."""
        cell = self.settings[number]
        params = _with_seed(cell, seed, budget)
        experiment = Experiment(params.only(READ), self.data)
        if not cell.searches:
            return Searched(nothing_found(experiment))
        first, targets = self._first_alike(number), cell.method.targets
        name = "-".join(["search", *([str(first)] if first else []), *([str(budget)] if targets else [])])
        done = work / f"{name}.scores"
        if not done.exists():
            self._search(cell, experiment, name, seed, budget if targets else None, work)
        kept = read_json(done)
        scores = done.with_suffix(".json")
        return Searched(Found.load(scores, self.schema), kept)

    def _search(self, cell: Cell, experiment: Experiment, name: str, seed: int, budget: Any, work: Path) -> None:
        """Search, and write the findings and the costs to the work folder."""
        began, before = time.monotonic(), _peak_mib()
        whole = not (work / name).exists()
        tracked = self.tracker.run(f"{name}/seed-{seed}", seed=seed, params=experiment.params.to_dict())
        found = find(experiment, work / name, tracked.metrics, cell.entry.share)
        allocation, spent = derive(experiment.method, evidence(found, self.schema, budget))
        summary = {
            "seconds": time.monotonic() - began if whole else None,
            "peak_mib": None if before is None else (_peak_mib() or before) - before,
            "dims": allocation.dims,
            "bytes": spent,
            "undecided": list(found.undecided),
            "training_bytes": found.training_bytes,
            "run": tracked.name,
        }
        tracked.metrics(0, {f"dim/{field}": d for field, d in allocation.dims.items()})
        tracked.end()
        done = work / f"{name}.scores"
        write_json(done.with_suffix(".json"), found.to_dict())
        write_json(done, summary)
        shutil.rmtree(work / name, ignore_errors=True)

    # --- trainings

    def _tested(
        self, cell: Cell, seed: int, arm: str, budget: Any, allocation: Allocation, name: str
    ) -> dict[str, Any]:
        """Train and test one arm. An identical model that is already trained for another arm or budget is reused."""
        place = {"seed": seed, "arm": arm, "budget": budget, "dims": allocation.dims}
        done, checkpoint = self.work / f"{name}.row", self.work / f"{name}.ckpt"
        settings = cell.params.retrain.model_dump()
        built = hashlib.sha256(json.dumps([allocation.digest(), settings]).encode()).hexdigest()
        for other in sorted((self.work / f"seed-{seed}").glob("*.row")):
            kept = read_json(other)
            if kept["built"] == built:
                return {**kept, **place}
        began, whole = time.monotonic(), not checkpoint.exists()
        run_name = name.replace("seed-", "retrain/seed-")
        tracked = self.tracker.run(run_name, seed=seed, params=_recorded(cell), tags={"allocation": arm})
        trained = self._trained(cell, seed, allocation, checkpoint, f"{cell.name}, {name}", tracked)
        seconds = time.monotonic() - began
        experiment = Experiment(cell.params.only(READ), self.data)
        test = self.data.split("test")
        tested = measure(experiment, trained.model, test)
        size, metrics, of_agents = tested.cost.bytes, dict(tested.metrics), dict[str, Any]()
        if self.played is not None:
            more, of_agents = self.played.measure(cell, self.data, trained.model, seed, checkpoint, tracked.metrics)
            metrics |= more
        tracked.metrics(0, {f"test/{metric}": value for metric, value in metrics.items()} | {"bytes": size})
        tracked.metrics(0, {f"dim/{field}": d for field, d in allocation.dims.items()})
        tracked.end()
        row = {
            **place,
            "metrics": tested.metrics,
            "bytes": size,
            "built": built,
            "of_full": size / full_tables(self.schema, cell.params.dim).bytes,
            "model_bytes": tested.model_bytes,
            "table_params": tested.cost.table_params,
            "training_bytes": tested.training_bytes,
            "validation": trained.validation[self.task.objective],
            "epochs": len(trained.history),
            "seconds": seconds if whole and not trained.reused else None,  # unknown for an interrupted training
            "run": tracked.name,
            "rows": len(tested.influence),
            "sketch": encoded(sketch(tested.influence)),
        }
        row |= self._of_retrieval(cell, experiment, trained.model, test, tested) | of_agents
        row["metrics"] = metrics
        write_json(done, row)
        checkpoint.unlink(missing_ok=True)
        figure = tested.metrics[self.task.objective]
        log.info("%s: %s: %s %.4f, %s bytes, %.0f s", cell.name, name, self.task.title, figure, f"{size:,}", seconds)
        return row

    def _of_retrieval(
        self, cell: Cell, experiment: Experiment, model: AnyModel, test: Split, tested: Measured
    ) -> dict[str, Any]:
        """What a model for retrieval is also judged by; see `pipeline.studies.retrieved`."""
        watched = getattr(model.backbone, "watched", None)
        found = {
            "groups": retrieved.by_group(self.task, tested.predictions, test),
            "impaired": retrieved.impaired(experiment, model, test) if cell.entry.impaired else {},
            "edges": retrieved.wrong_edges(cell.params.dataset, self.data, model),
            "watched": dict(watched()) if watched else {},
        }
        return {name: value for name, value in found.items() if value}

    def _trained(
        self, cell: Cell, seed: int, allocation: Allocation, checkpoint: Path, title: str, tracked: Run
    ) -> Trained:
        experiment = Experiment(cell.params.only(READ), self.data)
        alike = self.work / f"seed-{seed}"
        return train(experiment, allocation, seed, checkpoint, title=title, record=tracked.metrics, alike=alike)


def _allocations(cell: Cell, schema: Schema, seed: int, budget: Any, searched: Searched) -> dict[str, Allocation]:
    """The allocation of every arm for a budget. Arms whose size is fixed come only with the first budget."""
    chosen: dict[str, Allocation] = {}
    known = evidence(searched.found, schema, budget)
    arms = cell.entry.arms
    match = 0
    if {"searched", "uniform", "random"} & set(arms):
        allocation, match = derive(cell.method, known)
        if "searched" in arms:
            chosen["searched"] = allocation
    first = budget == cell.entry.budgets[0]
    for arm in arms:
        if arm in ("uniform", "random"):
            chosen[arm] = control(arm, known, seed, match)
        elif arm == "full" and first:
            chosen[arm] = Method.named(arm).derive(replace(known, method=arm))
        elif arm == "alone" and first:
            schema.check_names([cell.entry.field or ""])
            dims = {name: known.dim if name == cell.entry.field else 0 for name in schema.names}
            chosen[arm] = Allocation("full", dims)
    return chosen


def _with_seed(cell: Cell, seed: int, budget: Any) -> Params:
    """The parameters of a cell's search with a seed, and with the budget if the method has a target in bytes."""
    changes: dict[str, Any] = {"search": {"seed": seed}}
    values = merged(cell.setting.search.model_dump(mode="json"), changes)
    if cell.method.targets and budget is not None:
        name = cell.params.method.name
        values["method"] = merged(values["method"], {"options": {name: {"target": budget}}})
    return validated(Params, values, f"cell {cell.name}")


def _recorded(cell: Cell) -> dict[str, Any]:
    """The parameters that the tracker records."""
    return cell.params.only(READ).to_dict()


def _peak_mib() -> float | None:
    """Peak memory of this process until now; None if the system does not report it."""
    status = Path("/proc/self/status")
    return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024 if status.exists() else None
