"""Scores the rows of a file, batch by batch, and writes the answers to another file."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from tqdm import tqdm

from pipeline.scoring.scorer import Scorer
from pipeline.sources.source import BAG
from pipeline.workflow.outputs import whole

WRITERS: dict[str, Callable[[Path, pa.Schema], pa.csv.CSVWriter | pq.ParquetWriter]] = {
    ".csv": pa.csv.CSVWriter,
    ".parquet": pq.ParquetWriter,
}  # by the ending of the file


@dataclass(frozen=True)
class Scored:
    """What was written.

    Args:
        rows: their number.
        seconds: that they took.
        unknown: for each field, the number of its values, and of those that are unknown.
    """

    rows: int
    seconds: float
    unknown: dict[str, tuple[int, int]]


def score_file(scorer: Scorer, rows: Path, out: Path, keep: Sequence[str] = (), ending: str | None = None) -> Scored:
    """Write the answers for all rows of a file, in their order, whole or not at all.

    Args:
        scorer: the model.
        rows: CSV, TSV or Parquet with a column for each field.
        out: CSV or Parquet, by its ending.
        keep: columns of ``rows`` that go to ``out`` in front of the answers.
        ending: of ``out``, if its name has none.

    Raises:
        ValueError: if the ending is unknown, a column cannot be kept, or the rows do not fit the model.
    """
    ending, started = ending or out.suffix, time.monotonic()
    _check(scorer, rows, out, keep, ending)
    counts, number = np.zeros((len(scorer.encoding.schema), 2), dtype=np.int64), 0
    source = scorer.opened(rows, keep)
    with whole(out) as draft, contextlib.ExitStack() as stack:
        progress = stack.enter_context(tqdm(desc="score", unit=" rows", unit_scale=True, delay=1))
        writer = None
        for scores in scorer.scores(source):
            kept = {name: scores.rows[name] for name in keep}
            batch = pa.RecordBatch.from_pydict(kept | {scorer.task.answer_name: scores.answers})
            writer = writer or stack.enter_context(WRITERS[ending](draft, batch.schema))
            writer.write_batch(batch)
            counts += scores.counts
            number += len(batch)
            progress.update(len(batch))
        if writer is None:  # there are no rows
            empty = pa.schema([*((name, pa.string()) for name in keep), (scorer.task.answer_name, pa.float32())])
            stack.enter_context(WRITERS[ending](draft, empty))
    unknown = zip(scorer.encoding.schema.names, counts.tolist(), strict=True)
    return Scored(number, time.monotonic() - started, {name: (values, of) for name, (values, of) in unknown})


def _check(scorer: Scorer, rows: Path, out: Path, keep: Sequence[str], ending: str) -> None:
    if not rows.is_file():
        raise ValueError(f"{rows}: must be a file of rows, CSV, TSV or Parquet, and there is none")
    if ending not in WRITERS:
        raise ValueError(f"{out}: the name must end in {' or '.join(WRITERS)}, got {ending!r}")
    if out.exists() and out.samefile(rows):
        raise ValueError(f"{out}: the answers must not replace the rows; give another name")
    if scorer.task.answer_name in keep:
        raise ValueError(f"--keep: {scorer.task.answer_name!r} is the name of the answers; rename the column")
    if twice := sorted({name for name in keep if keep.count(name) > 1}):
        raise ValueError(f"--keep: no column may be named twice, got {twice}")
    bags = [name for name in keep if scorer.encoding.kinds.get(name) == BAG]
    if bags and ending == ".csv":
        raise ValueError(f"--keep: CSV cannot hold the lists of the bags {bags}; write Parquet, or leave them out")


def unknown_lines(scored: Scored) -> Iterator[str]:
    """A line for each field that has unknown values, the largest share first; one line if none has."""
    shares = {name: unknown / values for name, (values, unknown) in scored.unknown.items() if unknown}
    width = max(map(len, shares), default=0)
    for name in sorted(shares, key=lambda name: -shares[name]):
        values, unknown = scored.unknown[name]
        everything = "; does this file write them as the training data do?" if unknown == values else ""
        yield f"score: {name:<{width}}  {unknown:,} of {values:,} values are unknown ({shares[name]:.1%}){everything}"
    if not shares:
        yield "score: all values are known"
