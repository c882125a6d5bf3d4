"""A click model: an embedding of the fields that an allocation keeps, and a backbone on top."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.allocation.allocation import Allocation
from pipeline.data.batches import Batches
from pipeline.data.schema import Schema
from pipeline.data.split import Split
from pipeline.embeddings.batch import Lookup
from pipeline.embeddings.contract import FieldEmbedding

Build = Callable[[Schema, int, Allocation], FieldEmbedding]
MakeBackbone = Callable[..., nn.Module]


class CTRModel(nn.Module):
    """ids (B, S) -> logits (B,) of a click.

    Args:
        schema: of the ids, all fields.
        embedding: of the kept fields; its ``dim`` is the width the backbone is made for.
        backbone: class with ``(schema, dim, **options)``, called as ``(occurrences, embedded) -> logits``.
        kept: names of the fields that are used; all if None.
    """

    def __init__(
        self,
        schema: Schema,
        embedding: FieldEmbedding,
        backbone: MakeBackbone,
        options: Mapping[str, Any] | None = None,
        kept: Schema | None = None,
    ) -> None:
        super().__init__()
        kept = kept or schema
        self.lookup = Lookup(kept)
        self.embedding = embedding
        self.schema, self.kept, self.options = schema, kept, dict(options or {})
        self.backbone = backbone(kept, embedding.dim, **self.options)
        slots = None if len(kept) == len(schema) else torch.from_numpy(schema.slots_of(kept.names))
        self.register_buffer("slots", slots, persistent=False)

    slots: Tensor | None

    def forward(self, ids: Tensor) -> Tensor:
        if self.slots is not None:
            ids = ids[:, self.slots]
        occ = self.lookup(ids)
        logits: Tensor = self.backbone(occ, self.embedding(occ))
        return logits


def assemble(
    schema: Schema,
    dim: int,
    allocation: Allocation,
    build: Build,
    backbone: MakeBackbone,
    options: Mapping[str, Any] | None = None,
) -> CTRModel:
    """The model that an allocation describes; a field of dimension 0 is no part of it, nor of its backbone."""
    allocation.check(schema)
    kept = schema.subset(allocation.kept())
    return CTRModel(schema, build(kept, dim, allocation.of_kept()), backbone, options, kept)


@torch.no_grad()
def predict(model: nn.Module, split: Split, batch_size: int = 10_000) -> np.ndarray:
    """Logits (n,) float32 of all rows, in order, of a trained or served model, which is left in the mode it was in."""
    training = model.training
    device = next((p.device for p in model.parameters()), torch.device("cpu"))  # a served one may have none
    model.eval()
    logits = [model(ids.to(device)).float().cpu().numpy() for ids, _ in Batches(split, batch_size)]
    model.train(training)
    return np.concatenate(logits)
