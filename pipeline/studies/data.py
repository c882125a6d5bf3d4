"""The data of a study: ingested and encoded with the parameters of its profile, one folder for each data set."""

from __future__ import annotations

import shutil
from pathlib import Path

from pipeline.encoding.encode import encode
from pipeline.sources.opening import opened
from pipeline.sources.raw import write_raw
from pipeline.studies.grid import Cell
from pipeline.workflow.code import content_key
from pipeline.workflow.outputs import whole, write_json
from pipeline.workflow.plug import file_of


def prepare(cell: Cell, folder: Path) -> int:
    """Write the encoded data that a cell reads; the number of rows."""
    dataset = cell.params.dataset
    source = opened(dataset)
    with whole(folder) as draft:
        raw, encoded = draft / "raw", draft / "encoded"
        raw.mkdir(parents=True)
        record = {"dataset": dataset.name, **write_raw(source, raw / "table.parquet")}
        write_json(raw / "raw.json", record)
        encode(raw, encoded, cell.params.encode)
        for path in encoded.iterdir():
            path.replace(draft / path.name)
        encoded.rmdir()
        shutil.rmtree(raw)
    rows: int = record["rows"]
    return rows


def recipe(cell: Cell) -> str:
    """Names all that the data depend on but the files of the data set."""
    values = cell.params.only(["dataset", "encode"]).to_dict()
    return content_key(["pipeline/studies/data.py", file_of("datasets", cell.params.dataset.name)], values)
