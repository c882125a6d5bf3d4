"""Rows to train on, and a kill in the middle of training."""

from __future__ import annotations

import numpy as np

from pipeline.data.batches import Batch, Batches
from pipeline.data.schema import PADDING, Field, Schema
from pipeline.data.split import Split
from pipeline.tasks import ctr
from pipeline.training.task import Task

SCHEMA = Schema((Field("user", 30), Field("item", 20), Field("tags", 8, width=3)))
CTR = Task.of("ctr", ctr, {})


def clicks(number: int, seed: int) -> Split:
    """Rows of `SCHEMA`; users of odd ids click four times as often as the others."""
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.integers(0, n, number) for n in (30, 20, 8, 8, 8)], 1).astype(np.int32)
    ids[rng.random(number) < 0.5, 4] = PADDING
    labels = (rng.random(number) < np.where(ids[:, 0] % 2, 0.8, 0.2)).astype(np.uint8)
    return Split((ids,), (labels,))


class Killed(Exception):
    pass


class Fatal(Batches):
    """Batches that break off after some steps, as the kill of a process does."""

    steps = 0  # of training before the kill

    def take(self) -> Batch:
        batch = super().take()
        if self.epoch * len(self) + self.position > self.steps:
            raise Killed
        return batch
