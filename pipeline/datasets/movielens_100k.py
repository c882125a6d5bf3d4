"""MovieLens 100K: 100,000 ratings of 1,682 movies by 943 users.

F. M. Harper, J. A. Konstan 2015, The MovieLens Datasets: History and Context, ACM TiiS 5(4).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.sources.files import DataFile
from pipeline.sources.ratings import Genres, Threshold, find_files, movie_table, rated, user_table, year_of
from pipeline.sources.source import BadData, Source

DOWNLOAD = {
    "url": "https://files.grouplens.org/datasets/movielens/ml-100k.zip",
    "md5": "0e33842e24a9c977be4e0107933c0723",
}
GENRES = [  # in the order of u.genre; u.item has one flag for each
    *["unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"],
    *["Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"],
]
BEFORE_GENRES = 5  # movie, title, two release dates, address


def read(path: Path, *, threshold: Threshold = 4, genres: Genres = "bag", implicit: bool = False) -> Source:
    """The files of the published release: u.data, u.item and u.user, each also as .gz.

    Args:
        path: the folder of the files, a folder that holds it as ``ml-100k``, or ml-100k.zip.
        threshold: least rating for label 1, or of an interaction.
        genres: "bag" for a multi-valued field; "joined" for one value per combination of genres.
        implicit: whether ratings from the threshold on are interactions of users and movies, without a label, and the
            others are left out.

    Raises:
        NotFound: if a file is not there.
        BadData: if a file is damaged.
    """
    ratings, movies, users = find_files(path, ["u.data", "u.item", "u.user"], "ml-100k")
    return rated(
        ratings,
        "\t",
        movie_table(_movies(movies)),
        user_table(users, ["user", "age", "gender", "occupation", "zip"], "|"),
        threshold=threshold,
        genres=genres,
        implicit=implicit,
    )


def _movies(file: DataFile) -> Iterator[tuple[int, int | None, list[str]]]:
    file.first_line()
    for number, line in file.lines():
        text = line.decode("latin-1")
        values = text.split("|")
        flags = values[BEFORE_GENRES:]
        if len(flags) != len(GENRES) or not {*flags} <= {"0", "1"} or not values[0].isdecimal():
            raise BadData(
                f"must be a movie's number, title, dates, address and {len(GENRES)} flags",
                file=file,
                line=number,
                value=text,
                remedy="the file is damaged or not the right one: download it again",
            )
        yield (
            int(values[0]),
            year_of(values[1]),
            [genre for genre, flag in zip(GENRES, flags, strict=True) if flag == "1"],
        )
