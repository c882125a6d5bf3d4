"""Score new rows with a trained model, from anywhere.

    python -m stages.score artifacts/models/searched/seed-0 new.csv scores.csv
    python -m stages.score exported new.parquet scores.parquet --keep user_id,event
    python -m stages.score exported users.csv best.csv --top 20
    python -m stages.score exported all best.csv --top 20
    python -m stages.score exported all best.csv --index hnsw
    python -m stages.score exported events.csv best.csv --histories

MODEL is a folder that ``retrain`` or ``stages.export`` wrote. ROWS are CSV, TSV or Parquet with the columns of the data
set, without a label. OUT is CSV or Parquet, by its ending. ``-`` reads rows from stdin, or writes CSV to stdout. For a
model for retrieval, ROWS has a column of users, or is ``all`` for all users that the model knows, and OUT has the best
items of each. With ``--histories``, ROWS is a new log in the form of the training data, and its users are ranked by
what they did there. ``--index`` finds them with an approximate index of the items, and prints what that finds and takes
beside the exact search; ``stages.indices`` compares several.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.experiment.saved import About
from pipeline.models.nearest import nearest
from pipeline.scoring.files import check_places, score_file, told
from pipeline.scoring.index import Index
from pipeline.scoring.ranker import Ranker, rank_file, sentences
from pipeline.scoring.recall import compare
from pipeline.scoring.scorer import Scorer
from pipeline.workflow import process

ALL = "all"  # in the place of ROWS: all users that the model knows
TOP = 20


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("rows", type=Path, metavar="ROWS")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--keep", default="", metavar="COLUMNS", help="columns of ROWS to copy to OUT, e.g. user,item")
    parser.add_argument("--top", type=int, metavar="K", help="items of each user, 20 by default (retrieval)")
    parser.add_argument("--user", metavar="COLUMN", help="column of the users in ROWS (retrieval)")
    parser.add_argument(
        "--histories", action="store_true", default=None, help="ROWS is a new log; rank its users by it (retrieval)"
    )
    parser.add_argument(
        "--index",
        metavar="KIND",
        help="hnsw or ivfpq, also with options: hnsw:ef_search=128 (retrieval)",
    )
    given = parser.parse_args()
    (_rank if About.load(given.model).ranks else _score)(given)


def _score(given: argparse.Namespace) -> None:
    """Write the answers for rows."""
    for option in ("top", "user", "histories", "index"):
        if getattr(given, option) is not None:
            raise ValueError(f"--{option} is for models for retrieval, and {given.model} scores rows; remove it")
    keep = [name.strip() for name in given.keep.split(",") if name.strip()]
    scorer = Scorer.load(given.model)
    with _file_of_stdin(given.rows) as rows, _file_for_stdout(given.out) as out:
        scored = score_file(scorer, rows, out, keep, _ending(given.out))
    for line in told(scored):
        print(f"score: {line}", file=sys.stderr)
    rate = scored.rows / max(scored.seconds, 1e-9)
    print(f"score: {scored.rows:,} rows, {scored.seconds:.1f} s ({rate:,.0f} rows/s)", file=sys.stderr)


def _rank(given: argparse.Namespace) -> None:
    """Write the best items of users."""
    if given.keep:
        raise ValueError(f"--keep is for models that score rows, and {given.model} is for retrieval; remove it")
    index = None if given.index is None else Index(given.index)
    if given.histories and given.user:
        raise ValueError("--user is for a file of users, and --histories for a log of events; remove one of them")
    ranker = Ranker.load(given.model)
    notes: Sequence[str] = ()
    top = TOP if given.top is None else given.top
    with _file_of_stdin(given.rows) as rows, _file_for_stdout(given.out) as out:
        users = None if given.histories or str(rows) == ALL else rows
        if given.histories:
            check_places(rows, out, _ending(given.out) or out.suffix)
            ranker, notes = ranker.after(rows)
        ranked = rank_file(ranker, users, out, top, given.user, _ending(given.out), index or nearest)
    for line in [*notes, *sentences(ranked)]:
        print(f"score: {line}", file=sys.stderr)
    print(f"score: {ranked.users:,} users, {ranked.seconds:.1f} s", file=sys.stderr)
    if index is not None:
        for line in compare(ranker, top, [index]).lines():
            print(f"score: {line}", file=sys.stderr)


def _ending(out: Path) -> str | None:
    return ".csv" if str(out) == "-" else None


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
