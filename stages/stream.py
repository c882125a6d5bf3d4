"""Outside the main job: AutoEmb in its own setting, one pass over the log in the order of time. `make stream` runs it.

Reads ``artifacts/raw``; each batch is predicted first, then trained on. Writes the folder ``artifacts/stream``:
``table.md`` and ``table.csv`` (all models, over the whole log), ``windows.csv`` (along the log), ``popularity.csv`` (by
how often a value was seen before) and ``dims.csv`` (expected dimension by popularity).

The vocabulary of a stream is not known in advance. When a value first appears, it gets an id and a row with random
numbers (`pipeline.encoding.encode.as_stream`), and its first prediction uses that row.
"""

from __future__ import annotations

import time

import pandas as pd

from pipeline.encoding.encode import as_stream
from pipeline.encoding.vocabulary import cut_sentences
from pipeline.streaming.compare import Log, compare
from pipeline.streaming.report import markdown
from pipeline.training.task import Task
from pipeline.workflow import process
from pipeline.workflow.outputs import whole
from pipeline.workflow.params import Params
from pipeline.workflow.places import RAW
from pipeline.workflow.plug import plug
from pipeline.workflow.validation import checked_options

TABLES = ("table", "windows", "popularity", "dims")


def run() -> None:
    started = time.monotonic()
    params = Params.of_stage("stream")
    settings = params.stream
    task = Task.of(params.task.name, plug("tasks", params.task.name), params.task.options or {})
    backbone = plug("backbones", params.backbone.name).Backbone
    options = checked_options([backbone], params.backbone.options or {}, "params.yaml: backbone.options")
    schema, ids, labels, cut = as_stream(RAW)
    for sentence in cut_sentences(cut):
        print(f"stream: {sentence}")
    log = Log(schema, ids, labels).head(settings.rows)
    for name in ("windows", "batch_size"):
        if (number := getattr(settings, name)) > len(log):
            allowed = f"at most {len(log):,}, the rows of the log"
            raise ValueError(f"params.yaml: stream.{name} must be {allowed}, got {number:,}; lower it")
    records: dict[str, list[dict[str, object]]] = {name: [] for name in TABLES}
    for seed in settings.seeds:
        for model, results in compare(log, task, backbone, options, settings, seed):
            for name, rows in results.items():
                records[name] += rows
            objective = results["table"][0][task.objective]
            print(f"stream: seed {seed}, {model}: {task.title} {objective:.4f}", flush=True)
    tables = {name: pd.DataFrame(rows) for name, rows in records.items()}
    about = (
        f"{params.dataset.name}, {params.backbone.name}, {len(log):,} rows in the order of time, seeds "
        f"{list(settings.seeds)}, every batch of {settings.batch_size} predicted before it is trained on:"
    )
    with whole("artifacts/stream") as folder:
        folder.mkdir()
        for name, table in tables.items():
            table.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g")
        (folder / "table.md").write_text(markdown(tables, task, about))
    print(f"stream: {len(records['table'])} passes over {len(log):,} rows, {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    process.main(run)
