"""Ratings of movies, joined with tables of movies and of users, as in the MovieLens releases."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from pipeline.sources.delimited import Column, Delimited
from pipeline.sources.files import DataFile, find
from pipeline.sources.source import BAG, CATEGORICAL, ITEM, LABEL, USER, BadData, Interacting, Source

RATINGS = ("user", "movie", "rating", "time")
YEAR = re.compile(r"\((\d{4})\)\s*$")
MOST_GENRES = 6  # of a movie, in both releases
OF_MOVIES, OF_USERS = ("movie", "year", "genres"), ("user", "gender", "age", "occupation", "zip")
HISTORY = 20  # interactions before a row of implicit feedback
Threshold = Annotated[float, Field(gt=1, le=5)]  # with 1, every label would be 1
Genres = Literal["bag", "joined"]


def find_files(path: Path, names: Sequence[str], folder: str) -> list[DataFile]:
    """The files of one release, in a folder or a zip.

    Args:
        path: see `find`.
        names: of the files.
        folder: name of the release.

    Raises:
        NotFound: if a file is not there.
        BadData: if ``path`` is a single file but no zip.
    """
    remedy = (
        f"set dataset.path in params.yaml to the folder or zip that holds {', '.join(names)}, or put {folder}.zip "
        f"(https://files.grouplens.org/datasets/movielens/{folder}.zip) there"
    )
    if path.is_file() and path.suffix != ".zip":
        raise BadData("is a single file, but MovieLens has three", file=path, remedy=remedy)
    return [find(path, [name], folder, remedy) for name in names]


def year_of(title: str) -> int | None:
    """The year at the end of a title, as in "Toy Story (1995)"; None if there is none."""
    found = YEAR.search(title)
    return int(found[1]) if found else None


def movie_table(movies: Iterator[tuple[int, int | None, list[str]]]) -> pa.Table:
    """A table with the columns movie, year and genres, from these three values of every movie."""
    ids, years, genres = zip(*movies, strict=True)
    return pa.table(
        {
            "movie": pa.array(ids, pa.int32()),
            "year": pa.array(years, pa.int32()),
            "genres": pa.array(genres, pa.list_(pa.string())),
        }
    )


def user_table(file: DataFile, names: Sequence[str], delimiter: str) -> pa.Table:
    """A table with the columns user, gender, age, occupation and zip.

    Args:
        file: a line per user.
        names: of its columns.
        delimiter: between them.
    """
    types = {"user": pa.int32(), "age": pa.int32()}
    columns = [
        Column(name, types.get(name, pa.string()), required=True)
        for name in ("user", "gender", "age", "occupation", "zip")
    ]
    return pa.Table.from_batches(Delimited(file, names, delimiter, encoding="latin-1").read(columns))


def rated(
    ratings: DataFile,
    delimiter: str,
    movies: pa.Table,
    users: pa.Table,
    *,
    threshold: Threshold,
    genres: Genres,
    implicit: bool,
) -> Source:
    """Ratings as events with a label, or as interactions, with the eight fields of the AutoDim paper's case study.

    Args:
        ratings: lines of user, movie, rating from 1 to 5, Unix time.
        delimiter: between the values of a line.
        movies, users: see `movie_table` and `user_table`; they must contain every movie and user of the ratings.
        threshold: least rating for label 1, or of an interaction.
        genres: "bag", or "joined" for one value per combination, as in the paper.
        implicit: whether ratings from the threshold on are interactions, and the others are left out.
    """
    if genres == "joined":
        joined = pc.binary_join(movies["genres"], "|")
        movies = movies.set_column(movies.schema.get_field_index("genres"), "genres", joined)
    fields = dict.fromkeys([*OF_MOVIES, *OF_USERS], CATEGORICAL)
    if genres == "bag":
        fields["genres"] = BAG
    remedy = "the files are incomplete or not of the same release: download them again"
    known_users, known_movies = users["user"].combine_chunks(), movies["movie"].combine_chunks()
    for name, known in (("user", known_users), ("movie", known_movies)):
        counts = pc.value_counts(known)
        twice = counts.filter(pc.greater(counts.field("counts"), 1)).field("values").to_pylist()
        if twice:
            raise BadData(f"no {name} may be described twice", file=ratings.path.parent, value=twice, remedy=remedy)
    columns = [
        Column("user", pa.int32(), True, known_users, ("must be in the file of users", remedy)),
        Column("movie", pa.int32(), True, known_movies, ("must be in the file of movies", remedy)),
        Column("rating", pa.int32(), True, pa.array([1, 2, 3, 4, 5], pa.int32()), ("must be 1, 2, 3, 4 or 5", remedy)),
        Column("time", pa.int64(), True),
    ]

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in Delimited(ratings, RATINGS, delimiter).read(columns):
            movie = movies.take(pc.index_in(batch["movie"], known_movies))
            user = users.take(pc.index_in(batch["user"], known_users))
            known = {name: (movie if name in movie.schema.names else user)[name] for name in fields}
            label = pc.cast(pc.greater_equal(batch["rating"], threshold), pa.uint8())
            yield from pa.table({"label": label, "time": batch["time"], **known}).to_batches()

    source = Source(fields, batches(), str(ratings), {"min_count": 2, "max_bag": MOST_GENRES})
    return _implicit(source, threshold) if implicit else source


def _implicit(labelled: Source, threshold: Threshold) -> Source:
    """The rows of label 1 as interactions; a note counts the others."""
    notes: list[str] = []

    def batches() -> Iterator[pa.RecordBatch]:
        left_out = 0
        for batch in labelled.batches:
            kept = batch.filter(pc.equal(batch[LABEL], 1)).drop_columns([LABEL])
            left_out += len(batch) - len(kept)
            yield kept
        notes.append(f"{left_out:,} ratings below {threshold:g} are left out: they are no interactions")

    return dataclasses.replace(
        labelled,
        batches=batches(),
        defaults={**labelled.defaults, "min_count": 1, "history": HISTORY},
        facts={"time_unit": "s"},
        notes=notes,
        interactions=Interacting(dict.fromkeys(OF_MOVIES, ITEM) | dict.fromkeys(OF_USERS, USER), "user", "movie"),
    )
