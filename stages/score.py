"""Score new rows with a trained model, from anywhere.

    python -m stages.score artifacts/models/searched/seed-0 new.csv scores.csv
    python -m stages.score exported new.parquet scores.parquet --keep user_id,event

MODEL is a folder that ``retrain`` or ``stages.export`` wrote. ROWS are CSV, TSV or Parquet with the columns of the data
set, without a label. OUT is CSV or Parquet, by its ending. ``-`` reads rows from stdin, or writes CSV to stdout.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pipeline.scoring.files import score_file, told
from pipeline.scoring.scorer import Scorer
from pipeline.workflow import process


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("rows", type=Path, metavar="ROWS")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--keep", default="", metavar="COLUMNS", help="columns of ROWS to copy to OUT, e.g. user,item")
    given = parser.parse_args()
    keep = [name.strip() for name in given.keep.split(",") if name.strip()]
    scorer = Scorer.load(given.model)
    with _file_of_stdin(given.rows) as rows, _file_for_stdout(given.out) as out:
        scored = score_file(scorer, rows, out, keep, ".csv" if str(given.out) == "-" else None)
    for line in told(scored):
        print(f"score: {line}", file=sys.stderr)
    rate = scored.rows / max(scored.seconds, 1e-9)
    print(f"score: {scored.rows:,} rows, {scored.seconds:.1f} s ({rate:,.0f} rows/s)", file=sys.stderr)


@contextlib.contextmanager
def _file_of_stdin(path: Path) -> Iterator[Path]:
    """The path itself; for ``-`` a file with all of stdin, because a bad value is looked for in a second pass."""
    if str(path) != "-":
        yield path
        return
    with tempfile.NamedTemporaryFile(prefix="stdin-") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
        file.flush()
        yield Path(file.name)


@contextlib.contextmanager
def _file_for_stdout(path: Path) -> Iterator[Path]:
    """The path itself; for ``-`` a file whose contents go to stdout if the block ends without an error."""
    if str(path) != "-":
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "scores"
        yield file
        with file.open("rb") as scores:
            shutil.copyfileobj(scores, sys.stdout.buffer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    process.main(run, arguments=True)
