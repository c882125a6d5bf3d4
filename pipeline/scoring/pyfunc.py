"""The loader of a model that was exported for MLflow; MLflow finds it by the name of this module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from pipeline.scoring.scorer import Scorer


class Rows:
    """Raw rows as a data frame -> a data frame of the answers, one column for each number of a row."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    def predict(self, rows: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """The answers in the order of the rows; a bag is a list, or a text with its separators."""
        wanted = [name for name in self.scorer.columns if name in rows]  # a missing one is named below
        table = pa.Table.from_pandas(rows[wanted], preserve_index=False)  # in chunks, if rows were put together
        batch = pa.RecordBatch.from_arrays([column.combine_chunks() for column in table.columns], wanted)
        scores = [scores.answers for scores in self.scorer.scores(self.scorer.opened(batch))]
        nothing = np.zeros(0, np.float32)
        names = self.scorer.task.answer_columns
        answers = {name: np.concatenate([nothing, *(of[name] for of in scores)]) for name in names}
        return pd.DataFrame(answers, index=rows.index, dtype="float32")


def _load_pyfunc(path: str) -> Rows:
    """Called by MLflow with the path of the exported folder."""
    return Rows(Scorer.load(Path(path)))
