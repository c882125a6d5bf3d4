"""AutoEmb's own setting: one pass over the log in the order of time, each batch predicted and then trained on.

Reads ``artifacts/raw``; writes the folder ``artifacts/stream``: ``table.md`` and ``table.csv`` (all models beside each
other), ``windows.csv`` (their figures along the stream), ``popularity.csv`` (by how often a value was seen before) and
``dims.csv`` (expected dimension by popularity). `make stream` runs it.

Vocabularies of a stream are not known in advance: a value has an id, and a row of its own that starts at random, from
its first appearance on (`pipeline.encode.as_stream`), and that row is what its first prediction is made with.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pipeline.data.schema import Schema
from stages import _model, _stage
from stages._stage import RAW

if TYPE_CHECKING:
    import numpy as np

    from pipeline.models.model import CTRModel

SEEN = ((0, 5), (6, 20), (21, 100), (101, None))  # times that a value was seen before


def run() -> None:
    started = time.monotonic()
    _model.tune()
    import numpy as np
    import pandas as pd

    from pipeline.encoding.encode import as_stream

    params = _stage.params("stream")
    settings = params["stream"]
    dims = settings["dims"]
    if sorted(set(dims)) != list(dims) or not dims or dims[0] < 1:
        raise ValueError(f"params.yaml: stream: dims must be ascending, distinct and at least 1, however {dims}")
    schema, ids, labels = as_stream(RAW)
    rows = min(settings["rows"] or len(ids), len(ids))
    ids, labels = ids[:rows], labels[:rows]
    windows = np.arange(rows) * settings["windows"] // rows
    groups = _groups(schema, ids)
    records: dict[str, list[dict[str, Any]]] = {name: [] for name in ("table", "windows", "popularity", "dims")}
    for seed in settings["seeds"]:
        for arm, size, logits, model in _models(params, schema, ids, labels, seed):
            place = {"seed": seed, "model": arm}
            whole = _figures(labels, logits)
            records["table"].append({**place, "bytes": size, **whole})
            for window in range(settings["windows"]):
                inside = windows == window
                records["windows"].append({**place, "window": window, **_figures(labels[inside], logits[inside])})
            for (field, seen), inside in groups.items():
                found = {"field": field, "seen": seen, **_figures(labels[inside], logits[inside])}
                records["popularity"].append({**place, **found})
            records["dims"] += [{**place, **found} for found in _dims(schema, model)]
            print(f"stream: seed {seed}, {arm}: AUC {whole['auc']:.4f}, logloss {whole['logloss']:.4f}", flush=True)
    tables = {name: pd.DataFrame(found) for name, found in records.items()}
    with _stage.whole("artifacts/stream") as folder:
        folder.mkdir()
        for name, table in tables.items():
            table.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g")
        (folder / "table.md").write_text(_page(tables, params, schema, rows))
    print(f"stream: {len(records['table'])} passes over {rows:,} rows, {time.monotonic() - started:.0f} s")


def _models(
    params: Mapping[str, Any], schema: Schema, ids: np.ndarray, labels: np.ndarray, seed: int
) -> Iterator[tuple[str, int, np.ndarray, CTRModel]]:
    """(name, bytes in the end, logits (n,), trained model) of every model that is compared."""
    import torch

    from pipeline.embeddings.cost import cost
    from pipeline.embeddings.popularity import ByPopularity
    from pipeline.models.model import CTRModel
    from pipeline.training.prequential import prequential

    settings = params["stream"]
    dims = settings["dims"]
    arms: dict[str, tuple[list[int], Any, Any]] = {f"fixed {d}": ([d], "equal", "bilevel") for d in dims}
    arms |= {"equal weights": (dims, "equal", "bilevel"), "popularity rule": (dims, "rule", "bilevel")}
    arms |= {"joint": (dims, "controllers", "single"), "AutoEmb": (dims, "controllers", "bilevel")}
    for arm, (offered, by, level) in arms.items():
        torch.manual_seed(seed)
        embedding = ByPopularity(schema, offered, max(dims), by)
        model = CTRModel(schema, embedding, _model.backbone(params), params["backbone"]["options"])
        found = prequential(
            model,
            ids,
            labels,
            batch_size=settings["batch_size"],
            lr=settings["lr"],
            arch_lr=settings["lr"] if level == "single" else settings["arch_lr"],
            level=level,
            hard=arm == "AutoEmb",
        )
        for name, logits in found.items():
            embedding.hard = name == "hard"
            yield f"{arm}, hard" if embedding.hard else arm, cost(embedding.packed()).bytes, logits, model


def _figures(labels: np.ndarray, logits: np.ndarray) -> dict[str, Any]:
    """Rows, AUC (None where all labels are alike) and logloss."""
    from pipeline.metrics.auc import auc
    from pipeline.metrics.probability import logloss

    both = 0 < int(labels.sum()) < len(labels)
    return {
        "rows": len(labels),
        "auc": auc(labels, logits) if both else None,
        "logloss": logloss(labels, logits) if len(labels) else None,
    }


def _groups(schema: Schema, ids: np.ndarray) -> dict[tuple[str, str], np.ndarray]:
    """Rows by how often their value of a field was seen before, for the two single-valued fields with most values."""
    from pipeline.training.prequential import seen_before

    single = [f for f, field in enumerate(schema.fields) if field.width == 1]
    richest = sorted(single, key=lambda f: -schema.fields[f].cardinality)[:2]
    found = {}
    for f in richest:
        before = seen_before(ids[:, int(schema.widths[:f].sum())])
        for least, most in SEEN:
            name = f"> {least - 1}" if most is None else f"{least} to {most}"
            inside = before >= least if most is None else (before >= least) & (before <= most)
            found[schema.names[f], name] = inside
    return found


def _dims(schema: Schema, model: CTRModel) -> list[dict[str, Any]]:
    """Expected dimension of a value that was seen so often, by field, after the last row."""
    from pipeline.embeddings.popularity import ByPopularity

    embedding = model.embedding
    assert isinstance(embedding, ByPopularity)
    return [
        {"field": name, "seen": 2**bucket - 1, "expected_dim": float(value)}
        for name, row in zip(schema.names, embedding.expected_dims(), strict=True)
        for bucket, value in enumerate(row)
    ]


def _page(tables: Mapping[str, Any], params: Mapping[str, Any], schema: Schema, rows: int) -> str:
    """The comparison as Markdown; means and, over more than one seed, standard deviations."""
    settings = params["stream"]
    table, popularity, dims = tables["table"], tables["popularity"], tables["dims"]

    def mean(values: Any) -> str:
        spread = f" ± {values.std():.4f}" if len(values) > 1 else ""
        return "" if values.isna().any() else f"{values.mean():.4f}{spread}"

    lines = [
        f"{params['dataset']['name']}, {params['backbone']['name']}, {rows:,} rows in the order of time, seeds "
        f"{settings['seeds']}, every batch of {settings['batch_size']} predicted before it is trained on:",
        "",
        "| model | AUC | logloss | bytes |",
        "|---|---|---|---|",
    ]
    arms = list(dict.fromkeys(table.model))
    for arm in arms:
        own = table[table.model == arm]
        lines.append(f"| {arm} | {mean(own.auc)} | {mean(own.logloss)} | {own.bytes.mean():,.0f} |")
    for field in dict.fromkeys(popularity.field):
        names = list(dict.fromkeys(popularity.seen))
        own = popularity[popularity.field == field]
        counts = [int(own[own.seen == name].rows.iloc[0]) for name in names]
        lines += ["", f"AUC by how often the row's value of `{field}` was seen before:", ""]
        lines.append("| model | " + " | ".join(f"{n} ({c:,} rows)" for n, c in zip(names, counts, strict=True)) + " |")
        lines.append("|---|" + "---|" * len(names))
        for arm in arms:
            cells = [mean(own[(own.model == arm) & (own.seen == name)].auc) for name in names]
            lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    seen = [bucket for bucket in dict.fromkeys(dims.seen) if bucket in (0, 1, 3, 7, 15, 31, 63, 127, 255, 511, 1023)]
    for field in dict.fromkeys(popularity.field):
        lines += ["", f"Expected dimension of a value of `{field}` that was seen so often, after the last row:", ""]
        lines += ["| model | " + " | ".join(map(str, seen)) + " |", "|---|" + "---|" * len(seen)]
        for arm in ("popularity rule", "joint", "AutoEmb", "AutoEmb, hard"):
            own = dims[(dims.field == field) & (dims.model == arm)]
            lines.append(
                f"| {arm} | " + " | ".join(f"{own[own.seen == s].expected_dim.mean():.1f}" for s in seen) + " |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    _stage.main(run)
