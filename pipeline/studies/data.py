"""The data of a study: each data set is ingested and encoded once, in a folder of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

from pipeline.data.encoded import SCHEMA_FILE
from pipeline.encoding.encode import encode
from pipeline.sources.opening import opened
from pipeline.sources.raw import write_raw
from pipeline.studies.grid import Cell
from pipeline.workflow.code import content_key
from pipeline.workflow.outputs import whole, write_json
from pipeline.workflow.places import root
from pipeline.workflow.plug import file_of


def prepare(cell: Cell, folder: Path) -> int:
    """Write the encoded data that a cell reads.

    Args:
        cell: any cell of the data set.
        folder: the folder to write, whole or not at all.

    Returns:
        The number of rows.
    """
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
    """A hash of all that the encoded data depend on, except the files of the data set."""
    values = cell.params.only(["dataset", "encode"]).to_dict()
    users = root() / cell.params.dataset.path / SCHEMA_FILE  # of sessions, whose users are encoded interactions
    inputs = [users] if users.is_file() else []
    code = ["pipeline/studies/data.py", file_of("datasets", cell.params.dataset.name)]
    return content_key(code, values, inputs=inputs)
