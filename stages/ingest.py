"""Stage 1: read a data set in its published form, and write it as one typed table.

Reads ``dataset`` of params.yaml; writes ``artifacts/raw/table.parquet`` and ``artifacts/raw/raw.json``.
"""

from __future__ import annotations

import time

from pipeline.sources.opening import opened
from pipeline.sources.raw import write_raw
from pipeline.tracking.stage import stage_tracker
from pipeline.workflow import process
from pipeline.workflow.code import content_key
from pipeline.workflow.outputs import whole, write_json
from pipeline.workflow.params import Params
from pipeline.workflow.places import RAW
from pipeline.workflow.plug import file_of


def run() -> None:
    started = time.time()
    params = Params.of_stage("ingest")
    dataset = params.dataset
    source = opened(dataset)
    with whole(RAW) as folder:
        folder.mkdir()
        about = {"dataset": dataset.name, "options": dataset.options or {}}
        record = {**about, **write_raw(source, folder / "table.parquet")}
        write_json(folder / "raw.json", record)
    code = ["stages/ingest.py", file_of("datasets", dataset.name)]
    key = content_key(code, params.to_dict(), inputs=[RAW / "raw.json"])
    with stage_tracker("ingest", key, record["sha256"]) as tracker:
        tracked = tracker.run(params=params.to_dict(), tags={"raw_sha256": record["sha256"]}, started=started)
        label = {} if record["label"] is None else {"label_mean": record["label"]["mean"]}
        tracked.metrics(0, {"rows": record["rows"], "fields": len(record["fields"]), **label})
        tracked.artifact(RAW / "raw.json")
    what = "interactions" if record["label"] is None else f"mean label {record['label']['mean']:.4f}"
    print(
        f"ingest: {record['rows']:,} rows of {dataset.name}, {len(record['fields'])} fields, {what}, "
        f"{time.time() - started:.1f} s"
    )
    for note in record["notes"]:
        print(f"ingest: {note}")


if __name__ == "__main__":
    process.main(run)
