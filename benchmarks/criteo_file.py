"""A random text file in the shape of Criteo's train.txt: the same bytes for the same rows and seed.

It has 13 skewed counts, some of them blank, and 26 hashes. The popularity of the hashes follows a power law over as
many values as the published file has: two million rows have two and a half million distinct values, most of which occur
once.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

CHUNK_ROWS = 1 << 17
EXPONENT = 1.05
# Distinct values of C1 to C26 in the 45.8 million rows of the published file.
CARDINALITIES = (
    *(1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194),
    *(27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572),
)
# Shares of blanks of I1 to I13 and of C1 to C26.
BLANK_NUMBERS = (0.45, 0, 0.21, 0.22, 0.03, 0.22, 0.04, 0, 0.04, 0.45, 0.04, 0.77, 0.22)
BLANK_HASHES = (
    *(0, 0, 0.03, 0.03, 0, 0.12, 0, 0, 0, 0, 0, 0.03, 0),
    *(0, 0, 0.03, 0, 0, 0.44, 0.44, 0.03, 0.76, 0, 0.03, 0.44, 0.44),
)
SCALES = (1, 2, 2, 2, 8, 4, 2, 2, 4, 0.5, 1, 0.5, 2)  # mean logarithm of the counts


def write(path: Path, rows: int, seed: int = 0) -> None:
    """Write ``rows`` lines; gzipped if the name ends in .gz."""
    options = pyarrow.csv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none")
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(pa.OSFile(str(path), "wb"))
        if path.suffix == ".gz":
            file = stack.enter_context(pa.CompressedOutputStream(file, "gzip"))
        for number, start in enumerate(range(0, rows, CHUNK_ROWS)):
            table = _chunk(min(CHUNK_ROWS, rows - start), np.random.default_rng([seed, number]))
            pyarrow.csv.write_csv(table, file, options)


def _chunk(n: int, rng: np.random.Generator) -> pa.Table:
    columns = {"label": pa.array((rng.random(n) < 0.256).astype(np.uint8))}
    for i, (blank, scale) in enumerate(zip(BLANK_NUMBERS, SCALES, strict=True), start=1):
        counts = np.floor(rng.lognormal(scale, 1.5, n)).astype(np.int64) - (3 if i == 2 else 0)
        columns[f"I{i}"] = pa.array(counts, mask=rng.random(n) < blank)
    for i, (values, blank) in enumerate(zip(CARDINALITIES, BLANK_HASHES, strict=True), start=1):
        power = 1 - EXPONENT  # the inverse of the distribution function of a continuous power law on 1..values + 1
        ranks = ((1 + rng.random(n) * ((values + 1) ** power - 1)) ** (1 / power)).astype(np.uint64)
        hashes = ((ranks * np.uint64(0x9E3779B1) + np.uint64(i * 0x85EBCA6B)) % np.uint64(1 << 32)).astype(">u4")
        digits = np.frombuffer(hashes.tobytes().hex().encode(), dtype="S8")
        hashed = pa.array(digits, pa.binary(8), mask=rng.random(n) < blank)
        columns[f"C{i}"] = hashed.cast(pa.binary()).cast(pa.string())
    return pa.table(columns)
