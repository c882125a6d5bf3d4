"""Criteo Display Advertising Challenge (Kaggle 2014): 45,840,617 ads shown, 25.6 % of them clicked."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from pipeline.sources.delimited import Column, Delimited, binary_label
from pipeline.sources.files import find
from pipeline.sources.source import CATEGORICAL, NUMERIC, Source

NUMBERS = [f"I{i}" for i in range(1, 14)]  # counts; I2 may be negative
HASHES = [f"C{i}" for i in range(1, 27)]  # eight hex digits
WHERE = (
    "get the Criteo Display Advertising Challenge data set (Kaggle, or https://ailab.criteo.com/ressources) and "
    "put its train.txt, gzipped or not, or a zip with it, into data/criteo"
)


def read(path: Path) -> Source:
    """train.txt: label, 13 integers and 26 hashes, separated by tabs, without a header; a blank value is missing.

    Args:
        path: the file (plain or .gz), a zip with it, or a folder with either.

    Raises:
        NotFound: if the file is not there.
        BadData: if it is not as described.
    """
    file = find(path, ["train.txt"], "criteo", WHERE)
    text = Delimited(
        file,
        ["label", *NUMBERS, *HASHES],
        "\t",
        hint="correct or remove the line; a line of train.txt holds a label, 13 integers and 26 hashes; test.txt, with "
        "39 values a line, has no labels and cannot be used",
    )
    columns = [binary_label("label"), *(Column(name, pa.int64()) for name in NUMBERS), *map(Column, HASHES)]
    fields = dict.fromkeys(NUMBERS, NUMERIC) | dict.fromkeys(HASHES, CATEGORICAL)
    return Source(fields, text.read(columns), str(file), {"min_count": 10})
