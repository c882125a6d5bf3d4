"""Criteo Display Advertising Challenge (Kaggle 2014): 45,840,617 ads shown, 25.6 % of them clicked."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from pipeline.sources.delimited import ZERO_OR_ONE, Column, Delimited
from pipeline.sources.files import find
from pipeline.sources.source import CATEGORICAL, NUMERIC, Source

NUMBERS = [f"I{i}" for i in range(1, 14)]  # counts; I2 may be negative
HASHES = [f"C{i}" for i in range(1, 27)]  # eight hex digits
WHERE = (
    "get the Criteo Display Advertising Challenge data set (Kaggle, or https://ailab.criteo.com/ressources) and "
    "put its train.txt, gzipped or not, or a zip with it, into data/criteo"
)


def read(path: Path) -> Source:
    """train.txt: tab-separated without header: label, 13 integers, 26 hashes; blank is missing.

    Args:
        path: the file (plain, .gz), a zip with it, or a folder with either.
    """
    file = find(path, ["train.txt"], "criteo", WHERE)
    text = Delimited(
        file,
        ["label", *NUMBERS, *HASHES],
        "\t",
        hint="train.txt has a label, 13 integers and 26 hashes; test.txt (39 values) has no labels and is of no use "
        "here; correct or remove a line that is cut off",
    )
    label = Column("label", pa.uint8(), True, ZERO_OR_ONE, ("must be 0 or 1", "correct or remove the line"))
    columns = [label, *(Column(name, pa.int64()) for name in NUMBERS), *map(Column, HASHES)]
    fields = dict.fromkeys(NUMBERS, NUMERIC) | dict.fromkeys(HASHES, CATEGORICAL)
    return Source(fields, text.read(columns), str(file), {"min_count": 10})
