"""Avazu Click-Through Rate Prediction (Kaggle 2014): 40,428,967 ads shown in ten days, 17 % of them clicked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.sources.delimited import Column, Delimited, binary_label
from pipeline.sources.files import find
from pipeline.sources.source import CATEGORICAL, Source

FIELDS = [
    *["hour", "C1", "banner_pos", "site_id", "site_domain", "site_category", "app_id", "app_domain", "app_category"],
    *["device_id", "device_ip", "device_model", "device_type", "device_conn_type"],
    *(f"C{i}" for i in range(14, 22)),
]
WHERE = (
    "get the data of https://www.kaggle.com/c/avazu-ctr-prediction and put train.csv or train.gz, or the zip with "
    "it, into data/avazu"
)


def read(path: Path, *, hour: Literal["raw", "hour_of_day"] = "raw") -> Source:
    """train.csv: header ``id,click,hour,C1,...,C21``; ``id`` is dropped, and ``hour`` (YYMMDDHH) is also the time.

    Args:
        path: the file (plain or .gz), a zip with it, or a folder with either.
        hour: the values of the field ``hour``. "raw": YYMMDDHH, 240 values, as in published results, for a random
            split. "hour_of_day": 00 to 23, which recur on later days, for a split by time.

    Raises:
        NotFound: if the file is not there.
        BadData: if it is not as described.
    """
    file = find(path, ["train.csv", "train"], "avazu", WHERE)
    text = Delimited(file, None, hint="correct or remove the line; test.csv has no labels and cannot be used")
    columns = [
        binary_label("click"),
        Column("hour", pa.int64(), True),
        *(Column(name) for name in FIELDS if name != "hour"),
    ]

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in text.read(columns):
            time = batch["hour"]
            digits = pc.cast(time, pa.string())
            shown = digits if hour == "raw" else pc.utf8_slice_codeunits(digits, -2)
            fields = {name: shown if name == "hour" else batch[name] for name in FIELDS}
            yield pa.RecordBatch.from_pydict({"label": batch["click"], "time": time, **fields})

    return Source(dict.fromkeys(FIELDS, CATEGORICAL), batches(), str(file), {"min_count": 4})
