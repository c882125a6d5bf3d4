"""A trained or exported model that takes raw rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import nn

from pipeline.data.split import Split
from pipeline.datasets import table
from pipeline.encoding.encoding import Encoding
from pipeline.encoding.vocabulary import Counts
from pipeline.experiment.saved import ABOUT, TRAINED, WEIGHTS, About, encoding_of, read
from pipeline.serving.served import Served
from pipeline.sources.plain import DATES
from pipeline.sources.raw import regrouped
from pipeline.sources.source import BAG, KINDS, NUMERIC, Source
from pipeline.training.task import Task

SERVED = "served"  # the form of a model in its packed or coded file
TOGETHER = 1 << 15  # rows that are scored together; the vocabularies are searched once for each
OF_LABELS = ("label_type", "positive", "time")  # options of the data set `table` that new rows do not need


@dataclass(frozen=True)
class Scores:
    """The answers for some rows.

    Args:
        rows: the raw rows.
        answers: (n,) float32 by name; what they are says the task.
        counts: what each field met, by its name.
    """

    rows: pa.RecordBatch
    answers: Mapping[str, np.ndarray]
    counts: Mapping[str, Counts]


@dataclass(frozen=True)
class Scorer:
    """A model, its task and its encoding.

    Args:
        model: ids (B, S) -> what the task predicts from.
        task: that the model was trained for.
        encoding: by which its ids were made.
    """

    model: nn.Module
    task: Task
    encoding: Encoding

    @classmethod
    def load(cls, folder: Path) -> Scorer:
        """The model in a folder that `retrain` wrote, or that `export` wrote in the form `served` or `trained`.

        Raises:
            ValueError: naming the file that another version wrote, or that does not fit the others.
            FileNotFoundError: if a file is missing.
        """
        about = About.load(folder)
        if about.ranks:
            raise ValueError(f"{folder}: is a model for retrieval, which ranks items and does not score rows")
        encoding = Encoding.load(encoding_of(folder, about))
        if about.form == TRAINED:
            model: nn.Module = read(folder)[0]
        elif about.form == SERVED:
            model = Served.load(folder / WEIGHTS)
            about.check_weights(folder)
        else:
            raise ValueError(
                f"{folder / ABOUT}: the form must be {TRAINED} or {SERVED} to score rows, got {about.form}"
            )
        return cls(model, about.resolved_task(), encoding)

    @property
    def options(self) -> dict[str, Any]:
        """The options of `pipeline.datasets.table.unlabelled` for the rows of this model."""
        record = self.encoding.record
        if record["dataset"] == "table":
            return {name: value for name, value in record["options"].items() if name not in OF_LABELS}
        kinds = self.encoding.kinds.items()
        return {kind: [name for name, of_field in kinds if of_field == kind] for kind in KINDS}

    @property
    def columns(self) -> dict[str, str]:
        """The columns that raw rows must have, and what each holds: the kind of a field, or `DATES`."""
        options = self.options
        return {name: kind for kind in (*KINDS, DATES) for name in options.get(kind) or ()}

    def example(self) -> pd.DataFrame:
        """A raw row: the most frequent values of categorical fields and bags, the number 1, and a date."""
        row: dict[str, list[str | float]] = {}
        for name, kind in self.columns.items():
            if kind == NUMERIC:
                row[name] = [1.0]
            elif kind == DATES:
                row[name] = ["2024-01-31T12:30:00"]
            else:
                frequent = self.encoding.frequent(name)
                row[name] = [self.options.get("separator", "|").join(frequent[: 2 if kind == BAG else 1])]
        return pd.DataFrame(row)

    def opened(self, rows: Path | pa.RecordBatch, keep: Sequence[str] = ()) -> Source:
        """Raw rows; a file is not read yet.

        Args:
            rows: a text file, a Parquet file, a folder of part files, or the rows themselves.
            keep: columns that are passed on, besides the fields.
        """
        return table.unlabelled(rows, keep=keep, **self.options)

    def scores(self, source: Source) -> Iterator[Scores]:
        """The answers for all rows, batch by batch."""
        for piece in regrouped(source.batches, TOGETHER):
            (rows,) = piece.combine_chunks().to_batches()
            ids, counts = self.encoding.ids(rows)
            split = Split((ids,), (np.zeros(len(ids), dtype=np.float32),))  # the labels are not known, and not read
            predictions = torch.from_numpy(self.task.predict(self.model, split))
            answers = self.task.answer(predictions).view(len(ids), -1).T.numpy()
            yield Scores(rows, dict(zip(self.task.answer_columns, answers, strict=True)), counts)
