"""Avazu Click-Through Rate Prediction (Kaggle 2014): 40,428,967 ads shown in ten days, 17 % of them clicked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.sources.delimited import ZERO_OR_ONE, Column, Delimited
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


def read(path: Path, *, hour: str = "raw") -> Source:
    """train.csv: header ``id,click,hour,C1,...,C21``; ``id`` is dropped, ``hour`` (YYMMDDHH) also orders the rows.

    Args:
        path: the file (plain, .gz), a zip with it, or a folder with either.
        hour: what the field ``hour`` holds. "raw": YYMMDDHH, as published results have it (240 values: right for
            a random split). "hour_of_day": 00 to 23, which also means something on later days (for a time split).
    """
    if hour not in ("raw", "hour_of_day"):
        raise ValueError(f"no {hour=}; there are 'raw' and 'hour_of_day'")
    file = find(path, ["train.csv", "train"], "avazu", WHERE)
    text = Delimited(file, None, hint="correct or remove the line; test.csv has no labels and is of no use here")
    columns = [
        Column("click", pa.uint8(), True, ZERO_OR_ONE, ("must be 0 or 1", "correct or remove the line")),
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
