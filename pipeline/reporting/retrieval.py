"""What the report says of retrieval besides bytes: groups of targets, and references that learn no table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.data.split import Split
from pipeline.experiment.experiment import Experiment
from pipeline.metrics.difference import Difference
from pipeline.references.choose import left_out, results
from pipeline.reporting.forms import TRAINED, Form, Quality
from pipeline.reporting.text import Table, with_interval

JUDGED = ("recall_20", "ndcg_20")  # of a group; see `pipeline.metrics.ranking.by_group`
SHOWN = ("all", "repeat", "new", "cold")


def mean_groups(of_seeds: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """The metrics of each group, as means over the seeds."""
    return {
        name: {metric: float(np.mean([groups[name][metric] for groups in of_seeds])) for metric in of_seeds[0][name]}
        for name in of_seeds[0]
    }


def references(experiment: Experiment, full: Form | None, test: Split) -> dict[str, Any]:
    """The entry of the report for references that learn no table, with options that are chosen on ``val``.

    Args:
        experiment: on interactions.
        full: the full models, with which the references are compared.
        test: the test rows.

    Returns:
        ``by_name``: for each reference its ``options``, ``metrics``, ``groups``, and the difference of full from it;
        ``left_out``: the reason, by name, why others do not suit the data.
    """
    task, data = experiment.task, experiment.data
    shared = data.interactions
    assert shared is not None
    val = data.split("val")
    chosen = results(experiment.training_rows(), val, test, seen_val=task.seen(val), seen_test=task.seen(test))
    entries = {}
    for name, reference in chosen.items():
        metrics = task.measure(reference.top, test)
        entries[name] = {
            "options": dict(reference.options),
            "metrics": metrics,
            "groups": task.groups(reference.top, test),
            "full_minus": None,
        }
        if full is not None:
            form = Form(name, TRAINED, unit=task.unit)
            quality = Quality(reference.val["recall_20"], metrics[task.objective], task.influence(reference.top, test))
            for _ in full.test:
                form.add(0, 0, quality)
            entries[name]["full_minus"] = full.minus(form).to_dict()
    return {"by_name": entries, "left_out": left_out(len(shared.items), shared.columns.history)}


def tables(report: Mapping[str, Any]) -> list[Table]:
    """The tables of a report on retrieval; none for another."""
    if "interactions" not in report:
        return []
    rows = {name: entry["groups"] for name, entry in report["allocations"].items()}
    about = report.get("references", {"by_name": {}, "left_out": {}})
    rows |= {name: entry["groups"] for name, entry in about["by_name"].items()}
    there = [group for group in SHOWN if group in next(iter(rows.values()))]
    first = next(iter(rows.values()))
    head = ["Recall@20 / NDCG@20", *(f"{group} ({first[group]['targets']:,.0f} targets)" for group in there)]
    body = [[name, *(_both(of[group]) for group in there)] for name, of in rows.items()]
    note = " ".join(f"{name} is left out: {why}." for name, why in about["left_out"].items())
    compared = [
        [
            name,
            ", ".join(f"{key} {value}" for key, value in entry["options"].items()) or "–",
            f"{entry['metrics'][report['objective']]:.4f}",
            "–" if entry["full_minus"] is None else with_interval(Difference.of(entry["full_minus"])),
        ]
        for name, entry in about["by_name"].items()
    ]
    columns = ["reference", "options", f"{report['metrics'][report['objective']]} on test", "full minus it"]
    made = [Table("By group of targets, on test", head, body)]
    return [*made, Table("References that learn no table", columns, compared, note)] if compared else made


def _both(metrics: Mapping[str, float]) -> str:
    return " / ".join(f"{metrics[name]:.4f}" for name in JUDGED)
