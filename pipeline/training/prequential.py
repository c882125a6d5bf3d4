"""Prequential training along a stream, with embeddings that depend on the popularity of values so far.

The setting is that of AutoEmb (Zhao et al. 2021, ICDM): rows arrive once, in the order of time. For every batch, the
model predicts first. Then the controllers take a step on the batch, then the weights, and then the counters of its
values increase. So the controllers use a batch that is new to the weights.

NOTE[DIFF]: the published code does not support claims about streaming. It shuffles the rows; its counters start at zero
for the test rows; it scores a batch with the BatchNorm statistics of that batch; its controllers use a batch on which
the weights were just trained; it never chooses a dimension, so it saves no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from pipeline.data.batches import Batch
from pipeline.data.schema import PADDING
from pipeline.embeddings.popularity import ByPopularity
from pipeline.embeddings.table import Table
from pipeline.models.model import Model
from pipeline.training.bilevel import architecture_gradient, frozen_statistics
from pipeline.training.row_adam import RowAdam
from pipeline.training.task import Task
from pipeline.training.weights import Diverged

Level = Literal["bilevel", "single"]


def prequential(
    model: Model,
    task: Task,
    ids: np.ndarray,
    labels: np.ndarray,
    *,
    batch_size: int,
    lr: float,
    arch_lr: float,
    level: Level = "bilevel",
    hard: bool = False,
    passed: Callable[[int], object] = lambda rows: None,
) -> dict[str, np.ndarray]:
    """Predict every batch of a stream and then train on it.

    Args:
        model: fresh, with a `ByPopularity` embedding; it is trained.
        task: defines the loss.
        ids: (n, S), in the order of time.
        labels: (n,).
        batch_size: rows of a batch.
        lr: of the weights.
        arch_lr: of the controllers.
        level: "bilevel": the controllers take a step of their own before the weights. "single": one step of both.
        hard: whether to predict a second time, with only the candidate of the largest weight for each value.
        passed: receives the number of rows of every batch when it is done.

    Returns:
        ``outputs`` (n,): the outputs of the model before it was trained on the row; with ``hard``, also ``hard`` (n,).

    Raises:
        Diverged: if an output, a loss or a weight is not finite.
    """
    embedding = model.embedding
    assert isinstance(embedding, ByPopularity)
    arch = embedding.arch_parameters()
    tables, weights = _tables_and_weights(model, arch)
    optimizers: list[torch.optim.Optimizer] = [RowAdam(tables, lr=lr), torch.optim.Adam(weights, lr=lr, fused=True)]
    controllers = torch.optim.Adam(arch, lr=arch_lr) if arch else None
    optimizers += [controllers] if controllers is not None and level == "single" else []
    outputs: dict[str, list[np.ndarray]] = {name: [] for name in ("outputs", *(["hard"] if hard else []))}
    check = partial(_check, lr, arch_lr)
    for step, start in enumerate(range(0, len(ids), batch_size), 1):
        batch = _batch(ids[start : start + batch_size], labels[start : start + batch_size])
        for name in outputs:
            outputs[name].append(_predicted(model, embedding, batch, name == "hard"))
            check(bool(np.isfinite(outputs[name][-1]).all()), "an output", step)
        model.train()
        if len(batch.ids) > 1:  # BatchNorm needs two rows
            loss = partial(task.loss, model, batch)
            if controllers is not None and level == "bilevel":
                _arch_step(model, loss, controllers, [*tables, *weights])
            check(_stepped(loss, optimizers), "the loss", step)
        embedding.count((batch.ids + model.lookup.offsets)[batch.ids != PADDING])
        passed(len(batch.ids))
    check(all(bool(p.isfinite().all()) for p in model.parameters()), "a weight", step)
    return {name: np.concatenate(parts) for name, parts in outputs.items()}


def _batch(ids: np.ndarray, labels: np.ndarray) -> Batch:
    return Batch(torch.from_numpy(ids), torch.from_numpy(labels.astype(np.float32)))


@torch.no_grad()
def _predicted(model: Model, embedding: ByPopularity, batch: Batch, hard: bool) -> np.ndarray:
    """(B,), with all candidates or only with that of the largest weight for each value."""
    embedding.hard = hard
    outputs: np.ndarray = model.eval()(batch.ids).numpy()
    embedding.hard = False
    return outputs


def _arch_step(
    model: Model, loss: Callable[[], Tensor], controllers: torch.optim.Optimizer, weights: Sequence[Parameter]
) -> None:
    with frozen_statistics(model):
        architecture_gradient(loss, loss, model.embedding.arch_parameters(), weights)
    controllers.step()


def _stepped(loss: Callable[[], Tensor], optimizers: Sequence[torch.optim.Optimizer]) -> bool:
    """One step of all optimizers; whether the loss was finite."""
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    value = loss()
    value.backward()
    for optimizer in optimizers:
        optimizer.step()
    return bool(value.isfinite())


def _check(lr: float, arch_lr: float, finite: bool, what: str, step: int) -> None:
    if not finite:
        raise Diverged(
            f"{what} is not finite at step {step:,}, so the training has diverged; lower the learning rates: stream.lr "
            f"is {lr:g}, and that of the controllers {arch_lr:g}"
        )


def _tables_and_weights(model: Model, arch: Sequence[Parameter]) -> tuple[list[Parameter], list[Parameter]]:
    tables = [module.weight for module in model.modules() if isinstance(module, Table)]
    others = {id(p) for p in (*tables, *arch)}
    return tables, [p for p in model.parameters() if id(p) not in others]


def seen_before(column: np.ndarray) -> np.ndarray:
    """(n,) ids in the order of time -> (n,) number of earlier rows with the same id."""
    order = np.argsort(column, kind="stable")
    ordered = column[order]
    first = np.searchsorted(ordered, ordered, side="left")
    before = np.empty(len(column), dtype=np.int64)
    before[order] = np.arange(len(column)) - first
    return before
