"""Ratings of movies, joined with what is known of the movies and of the users: the shape of MovieLens."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.sources.delimited import Column, Delimited
from pipeline.sources.files import DataFile, find
from pipeline.sources.source import BAG, CATEGORICAL, BadData, Source

RATINGS = ("user", "movie", "rating", "time")
YEAR = re.compile(r"\((\d{4})\)\s*$")
MOST_GENRES = 6  # of any movie, in either release


def find_files(path: Path, names: Sequence[str], folder: str) -> list[DataFile]:
    """The files of one release, in a folder or a zip."""
    remedy = (
        f"set dataset.path in params.yaml to the folder or zip that holds {', '.join(names)}, or put {folder}.zip "
        f"(https://files.grouplens.org/datasets/movielens/{folder}.zip) there"
    )
    if path.is_file() and path.suffix != ".zip":
        raise BadData("is one file, where MovieLens has three", file=path, remedy=remedy)
    return [find(path, [name], folder, remedy) for name in names]


def year_of(title: str) -> int | None:
    """The year at the end of a title, as in "Toy Story (1995)"."""
    found = YEAR.search(title)
    return int(found[1]) if found else None


def movie_table(movies: Iterator[tuple[int, int | None, list[str]]]) -> pa.Table:
    """(movie, year, genres) of every movie, as a table."""
    ids, years, genres = zip(*movies, strict=True)
    return pa.table(
        {
            "movie": pa.array(ids, pa.int32()),
            "year": pa.array(years, pa.int32()),
            "genres": pa.array(genres, pa.list_(pa.string())),
        }
    )


def user_table(file: DataFile, names: Sequence[str], delimiter: str) -> pa.Table:
    """user, gender, age, occupation, zip of every user, as a table."""
    types = {"user": pa.int32(), "age": pa.int32()}
    columns = [
        Column(name, types.get(name, pa.string()), required=True)
        for name in ("user", "gender", "age", "occupation", "zip")
    ]
    return pa.Table.from_batches(Delimited(file, names, delimiter, encoding="latin-1").read(columns))


def rated(
    ratings: DataFile, delimiter: str, movies: pa.Table, users: pa.Table, *, threshold: float, genres: str
) -> Source:
    """Label 1 for a rating of at least ``threshold``; eight fields, in the order of the AutoDim paper's case study.

    Args:
        ratings: lines of user, movie, rating from 1 to 5, Unix time.
        movies, users: as of `movie_table` and `user_table`; every rated movie and rating user must occur.
        genres: "bag", or "joined" for one value per combination, as the paper has it.
    """
    if genres not in ("bag", "joined"):
        raise ValueError(f"no {genres=}; there are 'bag' and 'joined'")
    if genres == "joined":
        joined = pc.binary_join(movies["genres"], "|")
        movies = movies.set_column(movies.schema.get_field_index("genres"), "genres", joined)
    fields = dict.fromkeys(["movie", "year", "genres", "user", "gender", "age", "occupation", "zip"], CATEGORICAL)
    if genres == "bag":
        fields["genres"] = BAG
    remedy = "the files are not of one release, or incomplete: download them again"
    known_users, known_movies = users["user"].combine_chunks(), movies["movie"].combine_chunks()
    columns = [
        Column("user", pa.int32(), True, known_users, ("is no user of the users' file", remedy)),
        Column("movie", pa.int32(), True, known_movies, ("is no movie of the movies' file", remedy)),
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

    return Source(fields, batches(), str(ratings), {"min_count": 2, "max_bag": MOST_GENRES})
