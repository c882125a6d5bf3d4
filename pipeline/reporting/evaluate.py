"""Evaluate every allocation on the test rows: its metrics, its costs, and the searched one against the controls."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from pipeline.allocation.allocation import Allocation
from pipeline.data.split import Split, mapped
from pipeline.embeddings.cost import bytes_per_field, cost, full_tables
from pipeline.embeddings.mixed import MixedTables
from pipeline.embeddings.rounded import RoundedTables
from pipeline.experiment.experiment import CONTROLS, Experiment
from pipeline.experiment.found import Found
from pipeline.experiment.measure import measure
from pipeline.experiment.method import Method
from pipeline.experiment.saved import load
from pipeline.metrics.difference import spread
from pipeline.models.retriever import AnyModel
from pipeline.reporting.curve import curve
from pipeline.reporting.fields import of_record
from pipeline.reporting.forms import INT4, INT8, TRAINED, Form, Quality, deploy, objective, quality
from pipeline.reporting.forms import entries as form_entries
from pipeline.reporting.retrieval import mean_groups, references
from pipeline.serving.latency import BATCHES, measured
from pipeline.serving.latency import forms as forms_of
from pipeline.workflow.places import SCORES

ONE_DIMENSION = ("full", "uniform")  # the controls whose fields all have the same dimension
ROUNDED = {INT4: 4, INT8: 8}  # forms that are tested here if they are not served
SIZES = ("table_params", "params", "bytes", "model_bytes", "training_bytes")


@dataclass(frozen=True)
class Tested:
    """The results of one model on the test rows.

    Args:
        allocation: the model was built from it.
        width: D, the width of the vectors that the backbone takes.
        metrics: of the trained model.
        sizes: of the trained model, by the names in `SIZES`.
        served: metrics and bytes of the served model, by form; empty if the model cannot be served.
        groups: metrics of groups, see `pipeline.training.task.Task.groups`.
    """

    allocation: Allocation
    width: int
    metrics: Mapping[str, float]
    sizes: Mapping[str, int]
    served: Mapping[str, dict[str, Any]]
    groups: Mapping[str, Mapping[str, float]]


def evaluate(experiment: Experiment, models: Path, found: Found) -> dict[str, Any]:
    """The contents of ``report.json``. This opens the test rows.

    Args:
        experiment: the parameters and the data.
        models: folder of the retrained models; it holds ``<allocation>/seed-<seed>``.
        found: the findings of the search.
    """
    seeds = experiment.params.retrain.seeds
    test = experiment.data.split("test")
    names = ["searched", *(name for name in CONTROLS if (models / name).is_dir())]
    tested: dict[str, list[Tested]] = {name: [] for name in names}
    forms: dict[str, Form] = {}  # by name
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files: dict[str, Path] = {}
        full_models: list[AnyModel] = []
        for name in names:
            for seed in seeds:
                model, allocation = load(models / name / f"seed-{seed}", experiment)
                if name == "searched" and allocation.method != found.method:
                    raise ValueError(
                        f"the models are of method {allocation.method}, but {SCORES} is of {found.method}; run "
                        "`dvc repro`, which makes both again"
                    )
                if name == "full":
                    full_models.append(model)
                timed = files if seed == seeds[0] else None
                tested[name].append(_tested(experiment, model, allocation, test, folder, name, timed, forms))
        speeds = measured(files, test.slice(0, max(BATCHES))[0], folder)
    full = full_tables(experiment.schema, experiment.dim).bytes
    entries = {name: _entry(experiment, models_of, full, name, speeds) for name, models_of in tested.items()}
    report = _about(experiment, found, entries, len(test))
    forms = {name: form for name, form in forms.items() if len(form.test) == len(seeds)}  # all seeds can be served
    searched, beside = forms["searched"], [forms[name] for name in names[1:]]
    beside += [form for kind in (INT8, INT4) for form in _nearest(searched, forms, kind)]
    if full_models:
        drawn = curve(experiment, full_models, forms["full"], searched.bytes)
        report["curve"] = drawn.record
        forms |= {form.name: form for form in [drawn.at_knee] if form}
        beside += [form for form in [drawn.at_size] if form]
    report["forms"] = form_entries(list(forms.values()), forms.get("full"), full)
    report["deploy"] = deploy(report["forms"], report["tolerance"])
    report["comparisons"] = [searched.compared(other) for other in beside]
    if experiment.params.evaluate.references and experiment.data.interactions is not None:
        report["references"] = references(experiment, forms.get("full"), test)
    return report | planted(experiment, entries["searched"]["dims"], test)


def _about(experiment: Experiment, found: Found, entries: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """The entries of the report that say what was run, and those of the allocations."""
    data, task = experiment.data, experiment.task
    about: dict[str, Any] = {
        "dataset": data.record.get("dataset", experiment.params.dataset.name),
        "task": task.name,
        "metrics": dict(task.metrics),
        "objective": task.objective,
        "backbone": experiment.params.backbone.name,
        "method": found.method,
        "seeds": list(experiment.params.retrain.seeds),
        "test_rows": rows,
        "tolerance": experiment.params.evaluate.tolerance,
        "allocations": entries,
        "scored": found.scores is not None,
        "undecided": list(found.undecided),
        "data": of_record(data.record),
        "cardinality": {field.name: field.cardinality for field in experiment.schema.fields},
    }
    return about if data.interactions is None else about | {"interactions": data.record["interactions"]}


def _nearest(searched: Form, forms: Mapping[str, Form], kind: str) -> Iterator[Form]:
    """The full or uniform models in a form, whichever are nearer to the size of the searched ones; none if neither has
    the form."""
    known = [form for form in forms.values() if form.kind == kind and form.allocation in ONE_DIMENSION]
    yield from sorted(known, key=lambda form: abs(np.log(form.bytes / searched.bytes)))[:1]


def _tested(
    experiment: Experiment,
    model: AnyModel,
    allocation: Allocation,
    test: Split,
    folder: Path,
    name: str,
    files: dict[str, Path] | None,
    forms: dict[str, Form],
) -> Tested:
    """Test one model and its served forms, and add them to ``forms``.

    If ``files`` is given, the served forms are also saved in ``folder``, and their paths are added to ``files``.
    """
    task, val = experiment.task, experiment.data.split("val")
    results = measure(experiment, model, test)
    size, dense = results.cost.bytes, results.model_bytes - results.cost.bytes
    packed_forms = forms_of(model)
    trained = forms.setdefault(name, Form(name, TRAINED, bool(packed_forms), unit=task.unit))
    of_trained = Quality(objective(task, model, val), results.metrics[task.objective], results.influence)
    trained.add(size, results.model_bytes, of_trained)
    for kind, bits in ROUNDED.items():
        unserved = kind == INT4 or not packed_forms
        if name in ONE_DIMENSION and unserved and (rounded := _rounded(model, bits)) is not None:
            of_form = cost(rounded.embedding.packed()).bytes
            form = Form(name, kind, packed=False, unit=task.unit)
            forms.setdefault(form.name, form).add(of_form, dense + of_form, quality(task, rounded, val, test))
    served: dict[str, dict[str, Any]] = {}
    for kind, packed in packed_forms.items():
        predictions = task.predict(packed, test)
        metrics, of_form = task.measure(predictions, test), cost(packed.packed()).bytes
        served[kind] = {
            "metrics": metrics,
            "objective_loss": results.metrics[task.objective] - metrics[task.objective],
            "largest_difference": float(np.abs(predictions - results.predictions).max()),
            "bytes": of_form,
        }
        if kind == INT8:
            form, influence = Form(name, INT8, unit=task.unit), task.influence(predictions, test)
            of_int8 = Quality(objective(task, packed, val), metrics[task.objective], influence)
            forms.setdefault(form.name, form).add(of_form, dense + of_form, of_int8)
        if files is not None:
            files[f"{name}.{kind}"] = folder / f"{name}.{kind}"
            packed.save(files[f"{name}.{kind}"])
    sizes = {
        "table_params": results.cost.table_params,
        "params": results.params,
        "bytes": size,
        "model_bytes": results.model_bytes,
        "training_bytes": results.training_bytes,
    }
    groups = task.groups(results.predictions, test)
    return Tested(allocation, model.embedding.dim, results.metrics, sizes, served, groups)


def _rounded(model: AnyModel, bits: int) -> AnyModel | None:
    """The same model with its tables rounded to ``bits``; None if its tables are not plain."""
    embedding = model.embedding
    if type(embedding) is not MixedTables:
        return None
    rounded = RoundedTables(model.kept, embedding.dims, embedding.dim, bits=bits)
    rounded.load_state_dict(embedding.state_dict(), strict=False)  # all but the scales, which `finish` makes
    rounded.finish()
    return model.rebuilt(rounded)


def _entry(
    experiment: Experiment, models: Sequence[Tested], full: int, name: str, speeds: Mapping[str, Any]
) -> dict[str, Any]:
    """The entry of an allocation in the report, over its seeds."""
    dims = [model.allocation.dims for model in models]
    alike = all(each == dims[0] for each in dims)
    entry: dict[str, Any] = {"metrics": _spreads([model.metrics for model in models])}
    entry |= _over_seeds([model.sizes for model in models], SIZES, alike)
    per_field = [_bytes_per_field(experiment, model) for model in models]
    entry["dims"] = dims[0] if alike else dims
    entry["bytes_per_field"] = per_field[0] if alike else per_field
    entry["ratio"] = entry["bytes"] / full
    if models[0].groups:
        entry["groups"] = mean_groups([model.groups for model in models])
    entry["served"] = {}
    for form in [form for form in models[0].served if all(form in model.served for model in models)]:
        served = [model.served[form] for model in models]
        entry["served"][form] = {
            "metrics": _spreads([each["metrics"] for each in served]),
            **_over_seeds(served, ("bytes",), alike),
            "objective_loss": float(np.mean([each["objective_loss"] for each in served])),
            "largest_difference": max(each["largest_difference"] for each in served),
            **speeds[f"{name}.{form}"],
        }
        entry["served"][form]["ratio"] = entry["served"][form]["bytes"] / full
    return entry


def _spreads(metrics: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    return {name: spread([each[name] for each in metrics]) for name in metrics[0]}


def _over_seeds(sizes: Sequence[Mapping[str, Any]], names: Sequence[str], alike: bool) -> dict[str, Any]:
    """The sizes of an allocation; their mean and the value of each seed if the seeds have different dimensions."""
    entry: dict[str, Any] = {}
    for name in names:
        values = [of_seed[name] for of_seed in sizes]
        entry[name] = values[0] if alike else round(sum(values) / len(values))
        if not alike:
            entry[f"{name}_values"] = values
    return entry


def _bytes_per_field(experiment: Experiment, model: Tested) -> dict[str, int] | None:
    """Bytes of each field; None if settings or arrays also decide what is stored."""
    allocation = model.allocation
    if allocation.settings or allocation.arrays:
        return None
    return bytes_per_field(Method.named(allocation.method).plain, experiment.schema, allocation.dims, model.width)


def planted(experiment: Experiment, dims: Mapping[str, int], test: Split) -> dict[str, Any]:
    """Results that only planted data allow: chosen dimensions against true ranks, and the best possible objective.

    A field and its copy count as one field with the larger of their dimensions, because it is arbitrary which of the
    two a search prefers.

    Args:
        experiment: the parameters and the data.
        dims: chosen dimension of each field, by name.
        test: rows of the part ``test``.

    Returns:
        Entries of the report; empty if the data are not planted.
    """
    facts = experiment.data.facts
    if "ranks" not in facts:
        return {}
    ranks: dict[str, int] = facts["ranks"]
    chosen = {name: dims[name] for name in ranks}
    for copy, original in facts["copies"].items():
        chosen[original] = max(chosen[original], dims[copy])
    correlation = None  # undefined where all dims are alike
    if len(set(chosen.values())) > 1:
        correlation = float(spearmanr(list(ranks.values()), list(chosen.values())).statistic)
    expected = experiment.data.expected_labels("test")
    ceiling = None if expected is None else experiment.task.ceiling(mapped(expected, 1), test)
    return {
        "rank_correlation": correlation,
        "best_possible": ceiling,
        "planted": [{"feature": name, "rank": rank, "dim": chosen[name]} for name, rank in ranks.items()],
    }
