"""Stage 1: a data set, as its publisher lays it out -> one typed table.

Reads ``dataset`` of params.yaml; writes ``artifacts/raw/table.parquet`` and ``artifacts/raw/raw.json``.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from pipeline.sources.download import download
from pipeline.sources.raw import write_raw
from pipeline.sources.source import NotFound, Source
from pipeline.workflow.plug import check_options, plug
from stages import _stage
from stages._stage import RAW


def run() -> None:
    started = time.time()
    params = _stage.params("ingest")
    dataset = params["dataset"]
    source = opened(dataset["name"], dataset["path"], dataset["options"] or {})
    with _stage.whole(RAW) as folder:
        folder.mkdir()
        record = {"dataset": dataset["name"], **write_raw(source, folder / "table.parquet")}
        (folder / "raw.json").write_text(json.dumps(record, indent=1) + "\n")
    key = _stage.fingerprint("ingest", [RAW / "raw.json"])
    with _stage.tracker("ingest", key, record["sha256"], later=True) as tracker:
        tracked = tracker.run(params=params, tags={"raw_sha256": record["sha256"]}, started=started)
        figures = {"rows": record["rows"], "label_rate": record["label_rate"], "fields": len(record["fields"])}
        tracked.metrics(0, figures)
        tracked.artifact(RAW / "raw.json")
    print(
        f"ingest: {record['rows']:,} rows of {dataset['name']}, {len(record['fields'])} fields, "
        f"label rate {record['label_rate']:.4f}, {time.time() - started:.1f} s"
    )


def opened(name: str, path: str, options: dict[str, object]) -> Source:
    """The data set at ``path`` (relative to the repository), or what its publisher has for download."""
    module = plug("datasets", name)
    check_options(module.read, options, "dataset.options in params.yaml")
    place = _stage.root() / path
    if place.is_relative_to(Path.cwd()):
        place = place.relative_to(Path.cwd())  # messages then show it as the user gave it
    try:
        source: Source = module.read(place, **options)
    except NotFound:
        if not hasattr(module, "DOWNLOAD") or not place.exists():
            raise
        fetched = download(**module.DOWNLOAD, folder=_stage.root() / ".pipeline/downloads")
        source = module.read(fetched, **options)
    return source


if __name__ == "__main__":
    _stage.main(run)
