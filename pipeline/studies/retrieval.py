"""The tables of a study on retrieval: by group of targets, claims, published figures, impaired serving, wrong edges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from pipeline.metrics.difference import Difference, decoded, difference, sketched_variance
from pipeline.reporting import statistics
from pipeline.reporting.text import Table, mean_sd, p_value, with_interval
from pipeline.studies.comparisons import intervals
from pipeline.studies.contests import ALPHA, GAIN
from pipeline.studies.frames import Frames, Result
from pipeline.studies.grid import REFERENCES, Study
from pipeline.studies.retrieved import KEPT

MODEL = "model"  # the key of the grid that says which model a cell trains
CLAIMS, PUBLISHED = "claims.csv", "published.csv"
SCORES = ("residual", "cosine", "dual")  # of edges; see `pipeline.studies.retrieved.wrong_edges`

Rows = list[Mapping[str, Any]]  # of one model, one for each seed


def is_retrieval(study: Study) -> bool:
    """Whether a study compares models for retrieval, so that these are its tables."""
    return MODEL in study.grid


def tables(study: Study, frames: Frames, results: Sequence[Result]) -> list[Table]:
    """All tables of a study of models for retrieval.

    Args:
        study: its definition.
        frames: its results.
        results: one for each cell.
    """
    by_dataset: dict[str, dict[str, Rows]] = {}
    for result in results:
        models = by_dataset.setdefault(result["keys"]["dataset"], {})
        for row in result["rows"]:
            of_reference = result["keys"][MODEL] == REFERENCES
            models.setdefault(row["arm"] if of_reference else result["keys"][MODEL], []).append(row)
    made = [table for dataset, models in by_dataset.items() for table in _quality(dataset, models, frames)]
    made += _claims(study, frames, by_dataset, results)
    made += _published(study, frames, by_dataset)
    made += [table for dataset, models in by_dataset.items() for table in _impaired(dataset, models, frames)]
    return made + _edges(by_dataset) + _watched(by_dataset)


def _quality(dataset: str, models: Mapping[str, Rows], frames: Frames) -> list[Table]:
    """The metrics of every model, the best first, and its objective on each group of targets."""
    first = next(iter(models.values()))[0]["groups"]
    groups = [name for name in KEPT if name in first and name != "all"]
    lines = []
    for name, rows in sorted(models.items(), key=lambda item: -_mean(item[1], frames.objective)):
        figures = [mean_sd([row["metrics"][metric] for row in rows]) for metric in frames.shown]
        figures += [mean_sd([row["groups"][group]["recall_20"] for row in rows]) for group in groups]
        sizes = [row["bytes"] for row in rows]
        seconds = [row["seconds"] for row in rows if row["seconds"] is not None]
        cost = ["" if None in sizes else f"{np.mean(sizes):,.0f}", f"{np.mean(seconds):,.0f}" if seconds else ""]
        lines.append([name, *figures, *cost])
    titles = [frames.metrics[metric] for metric in frames.shown]
    head = [MODEL, *titles, *(f"{frames.title}, {group}" for group in groups), "bytes of tables", "seconds"]
    targets = ", ".join(f"{first[group]['targets']:,} {group}" for group in ("all", *groups) if group in first)
    note = f"Targets: {targets}. Each group has the ranking of all items. References have no tables and no seeds."
    return [Table(f"On test, {dataset}", head, lines, note)]


def _mean(rows: Rows, metric: str) -> float:
    return float(np.mean([row["metrics"][metric] for row in rows]))


# --- claims


def _claims(
    study: Study, frames: Frames, by_dataset: Mapping[str, Mapping[str, Rows]], results: Sequence[Result]
) -> list[Table]:
    """The claims of `CLAIMS`: that a model is better than another on a group of targets. In the place of the other,
    ``references`` is the reference that is best there, on test. p-values are corrected for all claims of a data set."""
    file = study.folder / CLAIMS
    if not file.exists():
        return []
    listed = pd.read_csv(file, keep_default_na=False).to_dict("records")
    known = {arm for result in results if result["keys"][MODEL] == REFERENCES for arm in _arms(result)}
    lines: list[list[str]] = []
    shown: list[Difference] = []
    for dataset, models in by_dataset.items():
        tests = []
        for each in listed:
            group = each["group"] or "all"
            against = each["against"]
            if against == REFERENCES:
                able = [name for name in models if name in known and group in models[name][0]["groups"]]
                against = max(able, key=lambda name: _recall(models[name], group), default="")
            if each["method"] in models and against in models:
                minus = _minus(models[each["method"]], models[against], group)
                if minus is not None:
                    tests.append((each, group, against, minus))
        corrected = statistics.holm([minus.p_value for *_, minus in tests])
        for (each, group, against, minus), p in zip(tests, corrected, strict=True):
            shown.append(minus)
            tested = f"{each['method']} {GAIN} {against}"
            figures = [_recall(models[name], group) for name in (each["method"], against)]
            beside = [*(f"{figure:.4f}" for figure in figures), with_interval(minus), p_value(p), _verdict(minus, p)]
            lines.append([dataset, each["source"], each["claim"], tested, group, *beside])
    head = ["dataset", "source", "claim", "tested", "targets", "it", "the other", "difference", "p", "verdict"]
    note = f"Of {frames.title} on the targets of the group. {intervals(shown)}"
    return [Table("Claims, with their sources", head, lines, note.strip())] if lines else []


def _arms(result: Result) -> set[str]:
    return {row["arm"] for row in result["rows"]}


def _recall(rows: Rows, group: str) -> float:
    return float(np.mean([row["groups"][group]["recall_20"] for row in rows]))


def _minus(a: Rows, b: Rows, group: str) -> Difference | None:
    """The recall of one model minus that of another on a group of targets, paired by seed; None without targets."""
    sides = [{row["seed"]: row["groups"].get(group) for row in rows} for rows in (a, b)]
    seeds = sorted(set(sides[0]) & set(sides[1]))
    chosen = [[side[seed] for seed in seeds] for side in sides]
    if not seeds or any(one is None for side in chosen for one in side):
        return None
    sketches = [[decoded(one["sketch"]) for one in side] for side in chosen]
    values = [[one["recall_20"] for one in side] for side in chosen]
    return difference(values[0], values[1], sketched_variance(*sketches), chosen[0][0]["users"], "users")


def _verdict(minus: Difference, corrected: float | None) -> str:
    if minus.interval is None or corrected is None:
        return "no test"
    if corrected >= ALPHA:
        return "undecided"
    return "supported" if minus.mean > 0 else "contradicted"


# --- the others


def _published(study: Study, frames: Frames, by_dataset: Mapping[str, Mapping[str, Rows]]) -> list[Table]:
    """Our figures beside those of `PUBLISHED`, with their source."""
    file = study.folder / PUBLISHED
    if not file.exists():
        return []
    metrics = ["recall_20", "ndcg_20"]
    lines = []
    for theirs in pd.read_csv(file, dtype=str, keep_default_na=False).to_dict("records"):
        rows = by_dataset.get(theirs["dataset"], {}).get(theirs["ours"])
        if theirs["dataset"] in by_dataset:
            own = [mean_sd([row["metrics"][metric] for row in rows]) if rows else "" for metric in metrics]
            published = [theirs["dataset"], theirs[MODEL], *(theirs[metric] for metric in metrics), theirs["source"]]
            lines.append([*published, theirs["ours"] if rows else "", *own])
    titles = [frames.metrics[metric] for metric in metrics]
    head = ["dataset", "published model", *titles, "source", "ours", *(f"our {title}" for title in titles)]
    note = "Published models are trained on all rows that are not test; ours, and the references, without those of val."
    return [Table("Beside published figures", head, lines, note)] if lines else []


def _impaired(dataset: str, models: Mapping[str, Rows], frames: Frames) -> list[Table]:
    """The objective when models are served less than they were trained on."""
    able = {name: rows for name, rows in models.items() if rows[0].get("impaired")}
    if not able:
        return []
    conditions = list(dict.fromkeys(key for rows in able.values() for key in rows[0]["impaired"]))
    lines = [
        [name, mean_sd([row["metrics"][frames.objective] for row in rows])]
        + [mean_sd([row["impaired"][key] for row in rows]) if key in rows[0]["impaired"] else "" for key in conditions]
        for name, rows in able.items()
    ]
    note = "Late: the latest events are missing from the histories. Without: the field is unknown for all items."
    return [Table(f"{frames.title} when less is served, {dataset}", [MODEL, "all there", *conditions], lines, note)]


def _edges(by_dataset: Mapping[str, Mapping[str, Rows]]) -> list[Table]:
    """How well trained models tell wrong edges from others."""
    lines = [
        [dataset, name, *(_of_score(rows, score) for score in SCORES)]
        for dataset, models in by_dataset.items()
        for name, rows in models.items()
        if rows[0].get("edges")
    ]
    note = (
        "AUC of a score of the trained model at telling the random edges of the graph from the others; 0.5 is chance."
    )
    note += (
        " residual: the length of the difference of an edge's ends; cosine: minus the cosine of the ends; dual: the "
    )
    note += "mean size of what GTN clips."
    return [Table("Finding wrong edges", ["dataset", MODEL, *SCORES], lines, note)] if lines else []


def _of_score(rows: Rows, score: str) -> str:
    return mean_sd([row["edges"][score] for row in rows]) if score in rows[0]["edges"] else ""


def _watched(by_dataset: Mapping[str, Mapping[str, Rows]]) -> list[Table]:
    """The numbers that backbones watch, after training."""
    lines = [
        [dataset, name, key, mean_sd([row["watched"][key] for row in rows])]
        for dataset, models in by_dataset.items()
        for name, rows in models.items()
        if rows[0].get("watched")
        for key in rows[0]["watched"]
    ]
    note = "clipped: the share of the dual's numbers that GTN's last step clips; largest_dual: the largest before it."
    return [Table("Inside the models", ["dataset", MODEL, "number", "after training"], lines, note)] if lines else []
