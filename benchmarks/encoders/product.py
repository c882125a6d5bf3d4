"""This project's stages `ingest` and `encode`."""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks.encoders import MIN_COUNT, SHARES, Job
from pipeline.datasets import criteo
from pipeline.encoding.encode import encode
from pipeline.sources.raw import write_raw
from pipeline.sources.source import Source
from pipeline.workflow.outputs import write_json
from pipeline.workflow.params import Encode, Split


def ingest(source: Source, raw: Path) -> None:
    """Write the raw table as `stages.ingest` does."""
    raw.mkdir()
    write_json(raw / "raw.json", write_raw(source, raw / "table.parquet"))


def prepare(file: Path, folder: Path) -> Job:
    source = criteo.read(file)  # reads nothing yet; pyarrow imports pandas here, and imports do not count
    settings = Encode(split=Split(by="random", **SHARES), min_count=MIN_COUNT)

    def ingest_and_encode() -> dict[str, float]:
        started = time.perf_counter()
        ingest(source, folder / "raw")
        between = time.perf_counter()
        encode(folder / "raw", folder / "encoded", settings)
        return {"ingest": between - started, "encode": time.perf_counter() - between}

    return ingest_and_encode
