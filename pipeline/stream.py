"""Popularity that grows along a stream, embeddings that go by it, and their prequential training.

AutoEmb's own setting (Zhao et al. 2021, ICDM): rows come in the order of time, once. Of every batch the model first
says what it predicts, then the controllers take a step on it, which the weights have not seen yet, then the weights,
and then the counters of its values go up.

What the published code does otherwise, and a streaming claim cannot rest on: it shuffles the rows; its counters start
again for the test rows; it scores with BatchNorm of the batch it scores; its controllers step on a batch that the
weights were just trained on; it never chooses a dimension, and so saves no memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot

from pipeline.bilevel import architecture_gradient
from pipeline.embeddings import FieldEmbedding, Occurrences, Table
from pipeline.lit import frozen_statistics
from pipeline.mixtures import field_of
from pipeline.model import CTRModel
from pipeline.optim import RowAdam
from pipeline.schema import PADDING, Schema
from pipeline.slices import Controllers, Slices

BUCKETS = 16  # of popularity: never seen, once, 2 to 3, 4 to 7, ...; the last is open

By = Literal["controllers", "equal", "rule"]


def bucket_of(counts: Tensor) -> Tensor:
    """Times that a value was seen -> number of its bucket, floor(log2(count + 1)), up to `BUCKETS` - 1."""
    return torch.log2(counts.float() + 1).floor().long().clamp(max=BUCKETS - 1)


def rule(candidates: int) -> Tensor:
    """(S, T) the popularity rule made by hand: the wider, the more often a value was seen, in equal steps of log2.

    Values seen 1023 times and more have the widest candidate, those never seen the narrowest.
    """
    step = (torch.arange(BUCKETS) * candidates / 10).floor().long().clamp(max=candidates - 1)
    return one_hot(step, candidates).float()


class ByPopularity(FieldEmbedding):
    """Slices of several dimensions, weighted by how often a value was seen until now.

    Args:
        schema: F fields.
        dims: T candidate dims, ascending; a single one is a plain table under the same transform.
        dim: D.
        by: what gives the weights: controllers, nothing (all are 1/T), or the rule, which chooses.
    """

    def __init__(self, schema: Schema, dims: Sequence[int], dim: int, by: By) -> None:
        super().__init__()
        self.dim, self.by, self.dims = dim, by, list(dims)
        self.hard = False  # whether only the candidate of the largest weight counts, with weight 1
        self.slices = Slices(schema, dims, dim)
        every = torch.ones(len(schema), len(dims), dtype=torch.bool)
        self.controllers = Controllers(every, BUCKETS) if by == "controllers" else None
        fixed = rule(len(dims)) if by == "rule" else torch.full((BUCKETS, len(dims)), 1 / len(dims))
        self.register_buffer("fixed", fixed.expand(len(schema), -1, -1), False)
        self.register_buffer("counts", torch.zeros(schema.num_rows, dtype=torch.int32))
        fields = np.repeat(np.arange(len(schema)), schema.cardinalities)
        self.register_buffer("fields", torch.tensor(fields), False)

    fixed: Tensor
    counts: Tensor
    fields: Tensor

    def weights(self) -> Tensor:
        """(F, S, T) of the candidates in every bucket."""
        weights = self.fixed if self.controllers is None else self.controllers().exp()
        return one_hot(weights.argmax(2), weights.shape[2]).to(weights.dtype) if self.hard else weights

    def forward(self, occ: Occurrences) -> Tensor:
        """Occurrences -> (B, F, D)."""
        place = field_of(occ.ends, len(occ.rows)) * BUCKETS + bucket_of(self.counts[occ.rows])
        embedded: Tensor = self.slices(occ, nn.functional.embedding(place, self.weights().flatten(0, 1)))
        return embedded

    def arch_parameters(self) -> list[nn.Parameter]:
        return [] if self.controllers is None else list(self.controllers.parameters())

    @torch.no_grad()
    def count(self, rows: Tensor) -> None:
        """Add one to a row's counter for each time that it occurs in rows (n,)."""
        self.counts += torch.bincount(rows, minlength=len(self.counts)).int()

    def packed(self) -> dict[str, Tensor]:
        """What it takes to serve, and to go on counting where weights go by the counts.

        Where one candidate alone counts, of a value's slices only that one, at the popularity that the value has now.
        """
        kept = self.slices.packed()
        if self.by != "equal":
            kept["counters"] = self.counts
        if self.controllers is not None:
            kept |= {f"controller.{name}": value.detach() for name, value in self.controllers.named_parameters()}
        if self.hard or self.by == "rule":
            chosen = self.weights().argmax(2)[self.fields, bucket_of(self.counts)]
            slices = kept["table"].split(self.dims, dim=1)
            kept["table"] = torch.cat([values[chosen == t].flatten() for t, values in enumerate(slices)])
        return kept

    @torch.no_grad()
    def expected_dims(self) -> np.ndarray:
        """(F, S) sum of w_t d_t in every bucket."""
        expected: np.ndarray = (self.weights() @ torch.tensor(self.dims, dtype=torch.float32)).cpu().numpy()
        return expected


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
