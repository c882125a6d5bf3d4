"""What the report says of the data: warnings of ``encode`` first, then a table of the fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.reporting.text import number_of, table

SHOWN = 40  # fields in the table
HEAD = ("field", "kind", "values", "ids", "unknown in val", "unknown in test", "most frequent")


def of_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a report needs of the contents of schema.json."""
    return {"summaries": record.get("summaries", {}), "warnings": record.get("warnings", [])}


def section(data: Mapping[str, Any] | None) -> list[str]:
    """The section as lines of Markdown; empty if nothing is known of the fields.

    Args:
        data: from `of_record`.
    """
    if not data or not data["summaries"]:
        return []
    fields = data["summaries"]
    shown = fields
    if len(fields) > SHOWN:
        shown = {name: about for name, about in fields.items() if about["warnings"]}
    alone = any(about["auc_alone"] is not None for about in fields.values())  # labels are 0 and 1
    last = " The last column is the AUC on val of each field alone." if alone else ""
    lines = ["", f"**Fields.** How each column was encoded.{last}", ""]
    told = [*data["warnings"], *(f"{name}: {text}" for name, about in shown.items() for text in about["warnings"])]
    lines += [*(f"- warning: {text}" for text in told), ""] if told else []
    if shown:
        head = [*HEAD, "AUC alone"] if alone else HEAD
        lines += [table(head, [_row(name, about)[: len(head)] for name, about in shown.items()])]
    if len(shown) < len(fields):
        others = number_of(len(fields) - len(shown), "field")
        lines += ["", f"{others} without a warning are left out; `artifacts/encoded/fields.csv` has all."]
    return lines


def _row(name: str, about: Mapping[str, Any]) -> list[str]:
    shares = [about["unknown"]["val"], about["unknown"]["test"], about["most_frequent"]]
    auc = "–" if about["auc_alone"] is None else f"{about['auc_alone']:.3f}"
    counts = [f"{about[name]:,}" for name in ("values", "ids")]
    return [name, about["kind"], *counts, *(f"{share:.1%}" for share in shares), auc]
