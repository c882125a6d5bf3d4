"""Scores the rows of a file, batch by batch, and writes the answers to another file."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from pipeline.encoding.vocabulary import Counts, cut_of, cut_sentences
from pipeline.scoring.scorer import Scorer
from pipeline.sources.source import BAG
from pipeline.workflow.outputs import whole
from pipeline.workflow.progress import progress
from pipeline.workflow.validation import repeated

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
        counts: what became of the values of each field, by its name.
        notes: sentences about what the reader changed.
    """

    rows: int
    seconds: float
    counts: Mapping[str, Counts]
    notes: Sequence[str]


def score_file(scorer: Scorer, rows: Path, out: Path, keep: Sequence[str] = (), ending: str | None = None) -> Scored:
    """Write the answers for all rows of a file, in their order, whole or not at all.

    Args:
        scorer: the model.
        rows: CSV, TSV or Parquet with a column for each field, or a folder of such files.
        out: CSV or Parquet, by its ending.
        keep: columns of ``rows`` that go to ``out`` in front of the answers.
        ending: of ``out``, if its name has none.

    Raises:
        ValueError: if the ending is unknown, a column cannot be kept, or the rows do not fit the model.
    """
    ending, started = ending or out.suffix, time.monotonic()
    _check(scorer, rows, out, keep, ending)
    counts, number = dict.fromkeys(scorer.encoding.schema.names, Counts()), 0
    source = scorer.opened(rows, keep)
    with whole(out) as draft, contextlib.ExitStack() as stack:
        bar = stack.enter_context(progress(desc="score", unit=" rows", unit_scale=True))
        writer = None
        for scores in scorer.scores(source):
            kept = {name: scores.rows[name] for name in keep}
            batch = pa.RecordBatch.from_pydict(kept | dict(scores.answers))
            writer = writer or stack.enter_context(WRITERS[ending](draft, batch.schema))
            writer.write_batch(batch)
            counts = {name: before + scores.counts[name] for name, before in counts.items()}
            number += len(batch)
            bar.update(len(batch))
        if writer is None:  # there are no rows
            answers = [(name, pa.float32()) for name in scorer.task.answer_columns]
            stack.enter_context(WRITERS[ending](draft, pa.schema([*((name, pa.string()) for name in keep), *answers])))
    return Scored(number, time.monotonic() - started, counts, source.notes)


def _check(scorer: Scorer, rows: Path, out: Path, keep: Sequence[str], ending: str) -> None:
    check_places(rows, out, ending)
    if taken := sorted(set(scorer.task.answer_columns) & set(keep)):
        raise ValueError(f"--keep: {taken[0]!r} is the name of the answers; rename the column")
    if twice := repeated(keep):
        raise ValueError(f"--keep: no column may be named twice, got {twice}")
    bags = [name for name in keep if scorer.encoding.kinds.get(name) == BAG]
    if bags and ending == ".csv":
        raise ValueError(f"--keep: CSV cannot hold the lists of the bags {bags}; write Parquet, or leave them out")


def check_places(rows: Path | None, out: Path, ending: str) -> None:
    """Check that there are rows, unless they are None, and that the answers can be written beside them.

    Raises:
        ValueError: naming the path.
    """
    if ending not in WRITERS:
        raise ValueError(f"{out}: the name must end in {' or '.join(WRITERS)}, got {ending!r}")
    if rows is None:
        return
    if not (rows.is_file() or rows.is_dir()):
        raise ValueError(f"{rows}: must be a file of rows, CSV, TSV or Parquet, or a folder of them, and there is none")
    if out.exists() and out.samefile(rows):
        raise ValueError(f"{out}: the answers must not replace the rows; give another name")
    if out.resolve().parent == rows.resolve():
        raise ValueError(f"{out}: the answers must not be among the rows of {rows}; name another folder")


def told(scored: Scored) -> Iterator[str]:
    """Sentences about what was changed or is unknown, the fields with the largest share of unknown values first."""
    yield from scored.notes
    counts = scored.counts
    shares = {name: of.unknown / of.values for name, of in counts.items() if of.unknown}
    width = max(map(len, shares), default=0)
    for name in sorted(shares, key=lambda name: -shares[name]):
        values, unknown = counts[name].values, counts[name].unknown
        everything = "; does this file write them as the training data do?" if unknown == values else ""
        yield f"{name:<{width}}  {unknown:,} of {values:,} values are unknown ({shares[name]:.1%}){everything}"
    if not shares:
        yield "all values are known"
    yield from cut_sentences(cut_of(counts))
