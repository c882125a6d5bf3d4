"""A summary of each field, and warnings about those that are useless or dangerous."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.encoded import Labels
from pipeline.data.split import LEAST_ROWS, Part
from pipeline.sources.source import CATEGORICAL, NUMERIC

SAMPLE = 1000  # training rows whose raw values say what a field may hold
UNIQUE = 0.8  # values in a training row from which on a field is nearly unique
TIMES = 0.9  # share of a sample that looks like times
LEAK = 0.98  # AUC of a field alone above which it probably tells the label
FIELDS_FILE = "fields.csv"
SHOWN = 40  # fields in a printed table
JUDGING: tuple[Part, ...] = ("val", "test")
LEAST_OF_LABEL = 10  # rows of the rarer label, like `LEAST_ROWS`
HEAD = ("field", "kind", "values", "ids", "unknown val", "unknown test", "most frequent", "AUC alone")
DATE = r"^\d{4}-\d{2}-\d{2}([ T]\d{2}:?\d{2}.*)?$"
SECONDS = r"^1\d{9}(\d{3})?(\.\d+)?$"  # or milliseconds; from September 2001 to May 2033


@dataclass(frozen=True)
class Summary:
    """One field of the encoded data.

    Args:
        kind: of the field.
        values: distinct values in the training rows; of a number, its buckets. Above 262,144 it is an estimate.
        ids: values that are frequent enough to have an id of their own.
        unknown: share of the rows of ``val`` and ``test`` without a known value.
        most_frequent: share of the training rows with the most frequent value.
        auc_alone: on ``val``, see `pipeline.encoding.tally.Tally.aucs`; None if labels are not 0 and 1.
        warnings: why the field is useless or dangerous, each with a remedy.
    """

    kind: str
    values: int
    ids: int
    unknown: Mapping[str, float]
    most_frequent: float
    auc_alone: float | None
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"warnings": list(self.warnings)}

    def cells(self) -> list[str]:
        """The entries below `HEAD` after the name."""
        shares = [*(self.unknown[part] for part in JUDGING), self.most_frequent]
        auc = "–" if self.auc_alone is None else f"{self.auc_alone:.3f}"
        return [self.kind, f"{self.values:,}", f"{self.ids:,}", *(f"{share:.1%}" for share in shares), auc]


def warnings(
    summary: Summary, rows: int, missing: bool, sample: pa.Array, quantiles: bool, twin: str | None
) -> tuple[str, ...]:
    """Why a field is useless or dangerous.

    Args:
        summary: of the field, still without warnings.
        rows: number of training rows.
        missing: whether a value is missing in some of them.
        sample: raw values of the first `SAMPLE` training rows.
        quantiles: whether numbers become quantiles.
        twin: an earlier field with the same ids in all rows.
    """
    found = [
        _few_values(summary, missing, sample, quantiles),
        _rare_values(summary, rows, sample),
        None if twin is None else f"a copy of {twin!r}: both have the same values in all rows; leave one of them out",
    ]
    if summary.auc_alone is not None and summary.auc_alone > LEAK:
        found.append(
            f"it predicts the label almost alone (AUC {summary.auc_alone:.3f} on val), so it is probably known only "
            "after the label; leave it out unless a new row has it too"
        )
    return tuple(text for text in found if text)


def _few_values(summary: Summary, missing: bool, sample: pa.Array, quantiles: bool) -> str | None:
    """About a field that distinguishes too few rows."""
    buckets = summary.values - missing
    if summary.kind == NUMERIC and buckets < 3 and len(pc.unique(sample.drop_null())) > buckets:
        into = f"its numbers fall into {buckets} bucket{'s' * (buckets != 1)}"
        if _times(sample):
            return f"{into} and look like Unix times; give an hour or a weekday instead, or order the rows by it"
        remedy = "list it under categorical" if quantiles else "set encode.numeric to quantiles in params.yaml"
        return f"{into}; {remedy}"
    if summary.values < 2:
        return "it has one value in all training rows and tells nothing; leave it out"
    return None


def _rare_values(summary: Summary, rows: int, sample: pa.Array) -> str | None:
    """About a field whose values do not come again."""
    unique = summary.kind == CATEGORICAL and summary.values >= UNIQUE * rows
    part, share = max(summary.unknown.items(), key=lambda item: item[1])
    if not unique and share <= 0.5:
        return None
    if unique:
        what = f"{summary.values:,} values in {rows:,} training rows are (nearly) unique"
    else:
        what = f"{share:.0%} of the rows of {part} have no known value"
    if summary.kind == CATEGORICAL and (times := _times(sample)):
        return f"{what} and look like {times}; give an hour or a weekday instead, or order the rows by it"
    if unique:
        return f"{what}, so nothing is learned from them; leave it out, or make its values coarser"
    return f"{what}: it is missing, rare or new there; lower encode.min_count, or make the values coarser"


def _times(sample: pa.Array) -> str | None:
    """What kind of times raw values look like; None if they do not."""
    values = sample.drop_null()
    if pa.types.is_floating(values.type):
        values = pc.round(values).cast(pa.int64(), safe=False)
    if not len(values):
        return None
    texts = values.cast(pa.string())
    for pattern, name in ((DATE, "dates"), (SECONDS, "Unix times")):
        if pc.sum(pc.match_substring_regex(texts, pattern)).as_py() >= TIMES * len(texts):
            return name
    return None


def part_warnings(labels: Mapping[Part, Labels]) -> list[str]:
    """Warnings about parts with which nothing can be judged.

    They are no errors: a first run on a few rows of a log is a good way to try the settings, and its report then gives
    no interval. A part that lacks one of the labels is an error, because no metric exists there.
    """
    found = []
    for part in JUDGING:
        about, rarer = labels[part], ""
        few = about.rows < LEAST_ROWS
        if about.binary:
            number = round(min(about.mean, 1 - about.mean) * about.rows)
            few, rarer = few or number < LEAST_OF_LABEL, f", {number} of the rarer label"
        if few:
            found.append(
                f"{part} has {about.rows:,} rows{rarer}, too few to judge by; raise encode.split.{part}, or give more "
                "rows"
            )
    return found


def lines(fields: Mapping[str, Mapping[str, Any]], table: Path) -> list[str]:
    """What ``encode`` prints: a line for each field, or for each with a warning if they are many, then the warnings.

    Args:
        fields: the `Summary` of each, as a record of schema.json.
        table: file with all fields, to be named.
    """
    summaries = {name: Summary(**record) for name, record in fields.items()}
    shown = summaries
    if len(summaries) > SHOWN:
        shown = {name: summary for name, summary in summaries.items() if summary.warnings}
    rows = [HEAD, *((name, *summary.cells()) for name, summary in shown.items())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    made = [_aligned(row, widths) for row in rows] if shown else []
    if len(shown) < len(summaries):
        made.append(f"{len(summaries) - len(shown)} fields have no warning; {table} has all")
    made += [f"encode: warning: {name}: {text}" for name, summary in shown.items() for text in summary.warnings]
    return made


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    """Names and kinds to the left, numbers to the right."""
    cells = [
        f"{cell:<{width}}" if i < 2 else f"{cell:>{width}}"
        for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(cells).rstrip()


def write_table(fields: Mapping[str, Mapping[str, Any]], file: Path) -> None:
    """Write all fields as CSV."""
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened, lineterminator="\n")
        unknown = [f"unknown_{part}" for part in JUDGING]
        writer.writerow(["field", "kind", "values", "ids", *unknown, "most_frequent", "auc_alone", "warnings"])
        for name, record in fields.items():
            unknown = [record["unknown"][part] for part in JUDGING]
            figures = [record["values"], record["ids"], *unknown, record["most_frequent"], record["auc_alone"]]
            writer.writerow([name, record["kind"], *figures, "; ".join(record["warnings"])])
