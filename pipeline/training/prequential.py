"""Popularity that grows along a stream, embeddings that go by it, and their prequential training.

AutoEmb's own setting (Zhao et al. 2021, ICDM): rows come in the order of time, once. Of every batch the model first
says what it predicts, then the controllers take a step on it, which the weights have not seen yet, then the weights,
and then the counters of its values go up.

What the published code does otherwise, and a streaming claim cannot rest on: it shuffles the rows; its counters start
again for the test rows; it scores with BatchNorm of the batch it scores; its controllers step on a batch that the
weights were just trained on; it never chooses a dimension, and so saves no memory.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from pipeline.data.schema import PADDING
from pipeline.embeddings.popularity import ByPopularity
from pipeline.embeddings.table import Table
from pipeline.models.model import CTRModel
from pipeline.training.bilevel import architecture_gradient, frozen_statistics
from pipeline.training.row_adam import RowAdam

Level = Literal["bilevel", "single"]


def prequential(
    model: CTRModel,
    ids: np.ndarray,
    labels: np.ndarray,
    *,
    batch_size: int,
    lr: float,
    arch_lr: float,
    level: Level = "bilevel",
    hard: bool = False,
) -> dict[str, np.ndarray]:
    """Predict every batch of a stream, and then train on it, once.

    Args:
        model: fresh, of `ByPopularity`; is trained.
        ids, labels: (n, S) and (n,), in the order of time.
        lr, arch_lr: of the weights and of the controllers.
        level: "bilevel": controllers take their step before the weights, on the batch that is new to both. "single":
            one step of both.
        hard: whether to predict with the candidate of the largest weight alone as well.

    Returns:
        ``logits`` (n,) before any step on the row; and ``hard`` (n,) if asked for.
    """
    embedding = model.embedding
    assert isinstance(embedding, ByPopularity)
    arch = embedding.arch_parameters()
    tables = [module.weight for module in model.modules() if isinstance(module, Table)]
    apart = {id(p) for p in (*tables, *arch)}
    weights = [p for p in model.parameters() if id(p) not in apart]
    optimizers: list[torch.optim.Optimizer] = [RowAdam(tables, lr=lr), torch.optim.Adam(weights, lr=lr, fused=True)]
    controllers = torch.optim.Adam(arch, lr=arch_lr) if arch else None
    if controllers is not None and level == "single":
        optimizers.append(controllers)
    found: dict[str, list[np.ndarray]] = {name: [] for name in ("logits", *(["hard"] if hard else []))}
    for start in range(0, len(ids), batch_size):
        batch = torch.from_numpy(ids[start : start + batch_size])
        answers = torch.from_numpy(labels[start : start + batch_size].astype(np.float32))
        model.eval()
        for name in found:
            embedding.hard = name == "hard"
            with torch.no_grad():
                found[name].append(model(batch).numpy())
        embedding.hard = False
        model.train()
        if len(batch) > 1:  # BatchNorm has nothing to say of a single row

            def loss(batch: Tensor = batch, answers: Tensor = answers) -> Tensor:
                return binary_cross_entropy_with_logits(model(batch), answers)

            if controllers is not None and level == "bilevel":
                with frozen_statistics(model):
                    architecture_gradient(loss, loss, arch, [*tables, *weights])
                controllers.step()
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
            loss().backward()
            for optimizer in optimizers:
                optimizer.step()
        embedding.count((batch + model.lookup.offsets)[batch != PADDING])
    return {name: np.concatenate(parts) for name, parts in found.items()}


def seen_before(column: np.ndarray) -> np.ndarray:
    """(n,) ids in the order of time -> (n,) how many rows before this one have its id."""
    order = np.argsort(column, kind="stable")
    ordered = column[order]
    first = np.searchsorted(ordered, ordered, side="left")
    before = np.empty(len(column), dtype=np.int64)
    before[order] = np.arange(len(column)) - first
    return before
