"""Raw tables of interactions for tests, as ``ingest`` writes them."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.sources.source import TIME
from pipeline.workflow.outputs import checksum

KINDS = {"user": "categorical", "item": "categorical"}


def raw_log(
    folder: Path,
    columns: dict[str, Any],
    users: dict[str, str] | None = None,
    items: dict[str, str] | None = None,
    targets: list[str] | None = None,
    **rest: Any,
) -> Path:
    """Write a raw table of interactions.

    Args:
        folder: created.
        columns: of n rows: ``user``, ``item``, and the others.
        users, items: kinds of further fields that describe users and items.
        targets: types of events that may be predicted.
        rest: further entries of raw.json.
    """
    folder.mkdir(parents=True)
    users, items = users or {}, items or {}
    table = pa.table(columns)
    pq.write_table(table, folder / "table.parquet", row_group_size=150)
    there = {name: name in table.column_names for name in ("event", "basket", "test")}
    roles = {"user": "user", "item": "item", **dict.fromkeys(users, "user"), **dict.fromkeys(items, "item")}
    record = {
        "rows": len(table),
        "label": None,
        "sha256": checksum(folder / "table.parquet"),
        "fields": KINDS | users | items,
        TIME: TIME in table.column_names,
        "oracle": False,
        "defaults": {"min_count": 1},
        "facts": {},
        "notes": [],
        "interactions": {"roles": roles, "keys": {"user": "user", "item": "item"}, "targets": targets, **there},
    }
    (folder / "raw.json").write_text(json.dumps(record | rest))
    return folder
