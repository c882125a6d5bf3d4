"""The comparison along a log in Markdown."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from pipeline.reporting.text import mean_sd, table
from pipeline.training.task import Task

SHOWN = (0, 1, 3, 7, 15, 31, 63, 127, 255, 511, 1023)  # times that a value was seen
CHOOSING = ("popularity rule", "joint", "AutoEmb", "AutoEmb, hard")


def markdown(tables: Mapping[str, pd.DataFrame], task: Task, about: str) -> str:
    """The report as text: means, and standard deviations if there is more than one seed.

    Args:
        tables: of `pipeline.streaming.compare.compare`, by name.
        task: defines the metrics.
        about: what was compared, in one sentence.
    """
    whole, popularity, dims = tables["table"], tables["popularity"], tables["dims"]
    models = list(dict.fromkeys(whole.model))
    shown = list(task.metrics)[:2]
    rows = []
    for model in models:
        own = whole[whole.model == model]
        rows.append([model, *(_mean(own[metric]) for metric in shown), f"{own.bytes.mean():,.0f}"])
    lines = [about, "", table(["model", *(task.metrics[metric] for metric in shown), "bytes"], rows)]
    for field in dict.fromkeys(popularity.field):
        own = popularity[popularity.field == field]
        lines += ["", f"{task.title} by how often the row's value of `{field}` was seen before:", ""]
        lines.append(_by_popularity(own, models, task.objective))
    for field in dict.fromkeys(popularity.field):
        lines += ["", f"Expected dimension of a value of `{field}` that was seen so often, after the last row:", ""]
        lines.append(_expected(dims[dims.field == field]))
    return "\n".join(lines) + "\n"


def _mean(values: pd.Series) -> str:
    return "" if values.isna().any() else mean_sd(values)


def _by_popularity(popularity: pd.DataFrame, models: list[str], objective: str) -> str:
    groups = list(dict.fromkeys(popularity.seen))
    counts = [int(popularity[popularity.seen == group].rows.iloc[0]) for group in groups]
    heads = [f"{group} ({count:,} rows)" for group, count in zip(groups, counts, strict=True)]
    rows = []
    for model in models:
        own = popularity[popularity.model == model]
        rows.append([model, *(_mean(own[own.seen == group][objective]) for group in groups)])
    return table(["model", *heads], rows)


def _expected(dims: pd.DataFrame) -> str:
    seen = [bucket for bucket in dict.fromkeys(dims.seen) if bucket in SHOWN]
    rows = []
    for model in CHOOSING:
        own = dims[dims.model == model]
        rows.append([model, *(f"{own[own.seen == s].expected_dim.mean():.1f}" for s in seen)])
    return table(["model", *map(str, seen)], rows)
