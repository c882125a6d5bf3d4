"""MovieLens 1M: 1,000,209 ratings of 3,706 movies by 6,040 users.

F. M. Harper, J. A. Konstan 2015, The MovieLens Datasets: History and Context, ACM TiiS 5(4).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.sources.files import DataFile
from pipeline.sources.ratings import Genres, Threshold, find_files, movie_table, rated, user_table, year_of
from pipeline.sources.source import BadData, Source

DOWNLOAD = {
    "url": "https://files.grouplens.org/datasets/movielens/ml-1m.zip",
    "md5": "c4d9eecfca2ab87c1945afe126590906",
}


def read(path: Path, *, threshold: Threshold = 4, genres: Genres = "bag", implicit: bool = False) -> Source:
    """The files of the published release: ratings.dat, movies.dat and users.dat, each also as .gz.

    Args:
        path: the folder of the files, a folder that holds it as ``ml-1m``, or ml-1m.zip.
        threshold: least rating for label 1, or of an interaction.
        genres: "bag" for a multi-valued field; "joined" for one value per combination of genres.
        implicit: whether ratings from the threshold on are interactions of users and movies, without a label, and the
            others are left out.

    Raises:
        NotFound: if a file is not there.
        BadData: if a file is damaged.
    """
    ratings, movies, users = find_files(path, ["ratings.dat", "movies.dat", "users.dat"], "ml-1m")
    return rated(
        ratings,
        "::",
        movie_table(_movies(movies)),
        user_table(users, ["user", "gender", "age", "occupation", "zip"], "::"),
        threshold=threshold,
        genres=genres,
        implicit=implicit,
    )


def _movies(file: DataFile) -> Iterator[tuple[int, int | None, list[str]]]:
    file.first_line()
    for number, line in file.lines():
        text = line.decode("latin-1")
        movie, _, rest = text.partition("::")
        title, separator, genres = rest.rpartition("::")
        if not separator or not movie.isdecimal():
            raise BadData(
                "must be movie::title::genres",
                file=file,
                line=number,
                value=text,
                remedy="the file is damaged or not the right one: download it again",
            )
        yield int(movie), year_of(title), genres.split("|")
