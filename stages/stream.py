"""Outside the main job: AutoEmb in its own setting, one pass over the log in the order of time. `make stream` runs it.

Reads ``artifacts/raw``; each batch is predicted first, then trained on. Writes the folder ``artifacts/stream``:
``table.md`` and ``table.csv`` (all models, over the whole log), ``windows.csv`` (along the log), ``popularity.csv`` (by
how often a value was seen before) and ``dims.csv`` (expected dimension by popularity).

The vocabulary of a stream is not known in advance. When a value first appears, it gets an id and a row with random
numbers (`pipeline.encoding.encode.as_stream`), and its first prediction uses that row.

The results of every pass are kept in ``.pipeline/stream``. After an interruption, finished passes are not done again.
"""

from __future__ import annotations

import json
import time

import pandas as pd

from pipeline.encoding.encode import as_stream
from pipeline.encoding.vocabulary import cut_sentences
from pipeline.reporting.text import number_of
from pipeline.streaming.compare import Comparison, Log, arms
from pipeline.streaming.report import markdown
from pipeline.training.task import Task
from pipeline.workflow import process
from pipeline.workflow.code import content_key
from pipeline.workflow.outputs import whole, write_text
from pipeline.workflow.params import Params
from pipeline.workflow.places import RAW, work
from pipeline.workflow.plug import file_of, plug
from pipeline.workflow.progress import progress, ticking
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
    comparison = Comparison(log, task, backbone, options, settings)
    kept = work("stream", _key(params))
    files = {
        (seed, arm): kept / f"seed-{seed}" / f"{arm.name}.json"
        for seed in settings.seeds
        for arm in arms(tuple(settings.dims))
    }
    todo = [file for file in files.values() if not file.exists()]
    records: dict[str, list[dict[str, object]]] = {name: [] for name in TABLES}
    with ticking(progress(total=len(todo) * len(log), desc="stream", unit=" rows", unit_scale=True)) as bar:
        for (seed, arm), file in files.items():
            if file in todo:
                write_text(file, json.dumps(comparison.run(arm, seed, bar.update)))  # NaN for groups without rows
            for model, of_model in json.loads(file.read_text()).items():
                for name, rows in of_model.items():
                    records[name] += rows
                with bar.external_write_mode():
                    objective = of_model["table"][0][task.objective]
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
    done = f"{len(todo)} of {number_of(len(files), 'pass', 'passes')} over {len(log):,} rows"
    print(f"stream: {done}, {time.monotonic() - started:.0f} s")


def _key(params: Params) -> str:
    """Identifies what a pass depends on besides its seed."""
    values = params.to_dict()
    del values["stream"]["seeds"]
    code = ["stages/stream.py", file_of("tasks", params.task.name), file_of("backbones", params.backbone.name)]
    return content_key(code, values, inputs=[RAW / "raw.json"])


if __name__ == "__main__":
    process.main(run, kept="finished passes are kept, and the same command goes on after them")
