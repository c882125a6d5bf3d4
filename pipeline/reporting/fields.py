"""What the report says of the data: a table of the fields, and the warnings of ``encode``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.reporting.text import Table, number_of

HEAD: tuple[str, ...] = ("field", "kind", "values", "ids", "unknown in val", "unknown in test", "most frequent")


def of_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a report needs of the contents of schema.json."""
    return {"summaries": record.get("summaries", {}), "warnings": record.get("warnings", [])}


def tables(data: Mapping[str, Any] | None, most: int | None) -> list[Table]:
    """The table of the fields; none if nothing is known of them.

    Args:
        data: from `of_record`.
        most: if there are more fields, only those with a warning are shown; None for all.
    """
    if not data or not data["summaries"]:
        return []
    every = shown = data["summaries"]
    note = ""
    if most is not None and len(every) > most:
        shown = {name: about for name, about in every.items() if about["warnings"]}
        others = number_of(len(every) - len(shown), "field")
        note = f"{others} without a warning are left out; `artifacts/encoded/fields.csv` has all. "
    head = HEAD
    if any(about["auc_alone"] is not None for about in every.values()):  # labels are 0 and 1
        note, head = f"{note}The last column is the AUC on val of each field alone.", (*HEAD, "AUC alone")
    rows = [_row(name, about)[: len(head)] for name, about in shown.items()]
    return [Table("How the columns were encoded", head, rows, note.strip())] if rows else []


def warnings(data: Mapping[str, Any] | None) -> Iterator[str]:
    """What ``encode`` warned of, a line each."""
    if data:
        told = [*data["warnings"]]
        told += [f"{name}: {text}" for name, about in data["summaries"].items() for text in about["warnings"]]
        yield from (f"warning: {text}" for text in told)


def _row(name: str, about: Mapping[str, Any]) -> list[str]:
    shares = [about["unknown"]["val"], about["unknown"]["test"], about["most_frequent"]]
    auc = "–" if about["auc_alone"] is None else f"{about['auc_alone']:.3f}"
    counts = [f"{about[name]:,}" for name in ("values", "ids")]
    return [name, about["kind"], *counts, *(f"{share:.1%}" for share in shares), auc]
