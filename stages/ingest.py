"""Stage 1: read a data set in its published form, and write it as one typed table.

Reads ``dataset`` of params.yaml; writes ``artifacts/raw/table.parquet`` and ``artifacts/raw/raw.json``. Data at an
address stay there: raw.json then holds the address.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from pipeline.sources.opening import opened
from pipeline.sources.raw import write_raw
from pipeline.tracking.stage import stage_tracker
from pipeline.workflow import process
from pipeline.workflow.address import ADDRESS, address_of
from pipeline.workflow.code import content_key
from pipeline.workflow.outputs import whole, write_json
from pipeline.workflow.params import Params
from pipeline.workflow.places import RAW
from pipeline.workflow.plug import file_of


def run() -> None:
    started = time.time()
    params = Params.of_stage("ingest")
    dataset = params.dataset
    about = {"dataset": dataset.name, "options": dataset.options or {}}
    address = address_of(dataset.path)
    source = None if address else opened(dataset)
    record: dict[str, Any]
    code = ["stages/ingest.py", file_of("datasets", dataset.name)]
    with whole(RAW) as folder:
        folder.mkdir()
        if source is None:
            record = {ADDRESS: address, **about, "sha256": content_key(code, about, address)}
        else:
            record = {**about, **write_raw(source, folder / "table.parquet")}
        write_json(folder / "raw.json", record)
    key = content_key(code, params.to_dict(), inputs=[RAW / "raw.json"])
    with stage_tracker("ingest", key, record["sha256"]) as tracker:
        tracked = tracker.run(params=params.to_dict(), tags={"raw_sha256": record["sha256"]}, started=started)
        if source is not None:
            label = {} if record["label"] is None else {"label_mean": record["label"]["mean"]}
            tracked.metrics(0, {"rows": record["rows"], "fields": len(record["fields"]), **label})
        tracked.artifact(RAW / "raw.json")
    print(f"ingest: encode will read {address} where it lies" if source is None else _sentence(record, started))
    for note in record.get("notes", []):
        print(f"ingest: {note}")


def _sentence(record: Mapping[str, Any], started: float) -> str:
    what = "interactions" if record["label"] is None else f"mean label {record['label']['mean']:.4f}"
    return (
        f"ingest: {record['rows']:,} rows of {record['dataset']}, {len(record['fields'])} fields, {what}, "
        f"{time.time() - started:.1f} s"
    )


if __name__ == "__main__":
    process.main(run)
