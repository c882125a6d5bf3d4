"""FuxiCTR's own preprocessing, with its settings for Criteo.

It needs a header line and a file for each part, so the text is cut into parts of the same shares before the clock
starts.
"""

from __future__ import annotations

import gzip
from pathlib import Path

from fuxictr.datasets.criteo import CustomizedFeatureProcessor
from fuxictr.preprocess import build_dataset

from benchmarks.encoders import HASHES, MIN_COUNT, NUMBERS, Job

COLUMNS = [
    {"name": NUMBERS, "active": True, "dtype": "float", "type": "categorical", "preprocess": "convert_to_bucket"},
    {"name": HASHES, "active": True, "dtype": "str", "type": "categorical"},
]
LABEL = {"name": "label", "dtype": "float"}
BOUNDS = {"train": (0.0, 0.7), "valid": (0.7, 0.8), "test": (0.8, 1.0)}  # shares of the lines


def prepare(file: Path, folder: Path) -> Job:
    paths = _cut(file, folder)

    def build() -> dict[str, float]:
        encoder = CustomizedFeatureProcessor(COLUMNS, LABEL, dataset_id="criteo", data_root=str(folder))
        build_dataset(encoder, **paths, sep="\t", min_categr_count=MIN_COUNT)
        return {}

    return build


def _cut(file: Path, folder: Path) -> dict[str, str]:
    """Write the parts, and return their paths by FuxiCTR's names for them."""
    with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as stream:
        lines = stream.readlines()
    header = ("\t".join(["label", *NUMBERS, *HASHES]) + "\n").encode()
    paths = {}
    for part, bounds in BOUNDS.items():
        start, stop = (round(len(lines) * bound) for bound in bounds)
        path = folder / f"{part}.csv"
        path.write_bytes(header + b"".join(lines[start:stop]))
        paths[f"{part}_data"] = str(path)
    return paths
