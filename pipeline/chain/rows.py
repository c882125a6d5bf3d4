"""Logged transitions as the rows of a table, from which the pipeline learns a behaviour model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pipeline.chain.logs import Log, steps
from pipeline.chain.sessions import Policy
from pipeline.chain.world import NOTHING, World

PAGES = ("entrance", "detail")  # by number
SKIPS = 5  # so many skips in a row and more are the same, as to the agents


def rows(
    world: World, policy: Policy, transitions: int, seed: int, longest: int, facts: dict[str, Any]
) -> Iterator[pa.RecordBatch]:
    """The transitions of `pipeline.chain.logs.steps`, a batch for each step.

    Args:
        world, policy, transitions, seed, longest: see there.
        facts: gets, after the last batch, ``least_logloss``: the mean of -log(chance of what the user did), in nats, by
            the chances of the world. They depend on users, whom the rows do not name, so a model can at best come near.

    Yields:
        label: float64 feedback; time: int64 number of the row; the number of the ``item`` and of the ``shown`` one,
        which is null on the entrance page; ``page``; ``skips``, at most `SKIPS`; and the ``history``, a list of texts.
    """
    done, loss = 0, 0.0
    for log in steps(world, policy, transitions, seed, longest):
        assert log.chances is not None
        chances = log.chances.double().gather(1, log.feedback[:, None])
        loss -= float(chances.clamp(min=1e-12).log().sum())  # rounding may let happen what has no chance
        yield _batch(log, done)
        done += len(log)
    facts["least_logloss"] = loss / done


def _batch(log: Log, first: int) -> pa.RecordBatch:
    """The rows of transitions, the first of which is row ``first``."""
    state = log.state
    filled = state.history != NOTHING
    ends = np.concatenate([[0], filled.sum(1).cumsum(0).numpy()]).astype(np.int32)
    history = pa.ListArray.from_arrays(pa.array(ends), pa.array(state.history[filled].numpy()).cast(pa.string()))
    columns = {
        "label": log.feedback.double().numpy(),
        "time": np.arange(first, first + len(log)),
        "item": log.actions.numpy(),
        "shown": pa.array(state.shown.numpy(), mask=(state.shown == NOTHING).numpy()),
        "page": pa.array(PAGES).take(pa.array(state.page.numpy())),
        "skips": torch.clamp(state.skips, max=SKIPS).numpy(),
        "history": history,
    }
    return pa.RecordBatch.from_pydict(columns)
