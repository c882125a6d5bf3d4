"""A model: an embedding of the kept fields and a backbone.

**A backbone is one file** in ``pipeline/backbones``, with a class ``Backbone``, a `torch.nn.Module` ::

    class Backbone(nn.Module):
        factored = False
        outputs = 1

        def __init__(self, schema: Schema, dim: int, *, option: type = default, ...) -> None
        def forward(self, occ: Occurrences, embedded: Tensor) -> Tensor

``schema`` has the F kept fields, and ``dim`` is D. The keyword-only parameters are the options that
``backbone.options`` in params.yaml may set; their annotations define the allowed values, which are checked before
anything runs. `forward` takes the rows of the tables that a batch looks up and the vectors (B, F, D), and returns the
outputs that the task expects, e.g. logits (B,). Both attributes may be left out. ``outputs`` is K, the numbers of a
row, which must suit the task; with K > 1, `forward` returns (B, K). ``factored = True`` says that `forward` passes
``embedded`` to nothing but `pipeline.models.layers.MLP` and `pipeline.models.layers.second_order`; then the model is
served faster.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.allocation.allocation import Allocation
from pipeline.data.batches import Batches
from pipeline.data.schema import Schema
from pipeline.data.share import Divided
from pipeline.data.split import Split
from pipeline.embeddings.batch import Lookup, Occurrences, divided
from pipeline.embeddings.contract import FieldEmbedding
from pipeline.embeddings.fixed import FixedLookup
from pipeline.models.dense import settle
from pipeline.models.layers import FirstOrder
from pipeline.models.precision import Mixed

Build = Callable[[Schema, int, Allocation], FieldEmbedding]
MakeBackbone = Callable[..., nn.Module]
M = TypeVar("M", bound=nn.Module)
PREDICTED_TOGETHER = 10_000  # rows of a batch in prediction


class Model(Divided, Mixed, nn.Module):
    """ids (B, S) -> outputs of the backbone, e.g. logits (B,).

    Args:
        schema: of the ids, all fields.
        embedding: of the kept fields; its ``dim`` is D.
        backbone: class; constructed with ``(schema, dim, **options)``, called with ``(occurrences, embedded)``.
        options: of the backbone.
        kept: schema of the fields that the model uses; None for all.
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
        self.lookup: Lookup = Lookup(kept)
        self.embedding = embedding
        self.schema, self.kept, self.options, self.make = schema, kept, dict(options or {}), backbone
        self.backbone = backbone(kept, embedding.dim, **self.options)
        first_order = first_order_of(self.backbone)
        self.split = embedding.take_first_order(first_order is not None)
        if first_order is not None and self.split:
            first_order.table = None
        slots = None if len(kept) == len(schema) else torch.from_numpy(schema.slots_of(kept.names))
        self.register_buffer("slots", slots, persistent=False)

    slots: Tensor | None

    def finish(self, dense_bits: int | None = None) -> None:
        """Settle the embedding and rounded dense weights on what is served; see `FieldEmbedding.finish`.

        Args:
            dense_bits: to round dense weights for the first time; None to settle those that are rounded already.

        Raises:
            ValueError: if a dense layer cannot be rounded.
        """
        self.embedding.finish()
        settle(self.backbone, dense_bits)

    def fix(self, fixed: bool = True) -> None:
        """Look up, in training, as many rows of each field in every batch, or again the distinct ones alone; see
        `pipeline.embeddings.fixed`."""
        kind = FixedLookup if fixed else Lookup
        self.lookup = kind(self.kept).to(self.lookup.bounds.device)

    def rebuilt(self, embedding: FieldEmbedding) -> Model:
        """A copy of this model with another embedding of the same fields, which may hold the first-order weights."""
        with torch.random.fork_rng(devices=[]):
            other = Model(self.schema, embedding, self.make, self.options, self.kept)
        return with_backbone(other, self.backbone)

    def occurrences(self, ids: Tensor) -> Occurrences:
        """ids (B, S) -> the occurrences of the rows of the kept fields.

        If several processes share a batch, ``ids`` are the rows of this one, and the occurrences those of all.
        """
        share = self.share if self.training else None
        ids = ids if share is None else share.ids
        found: Occurrences = self.lookup(ids if self.slots is None else ids[:, self.slots])
        return found if share is None else divided(found, share)

    def forward(self, ids: Tensor) -> Tensor:
        occ = self.occurrences(ids)
        embedded = self.embedding(occ)
        if self.split:
            embedded, weights = embedded.tensor_split([self.embedding.dim], 2)
            occ = replace(occ, first_order=weights.sum((1, 2)))
        return self.products(self.backbone, occ, embedded, like=embedded)


def outputs_of(backbone: MakeBackbone) -> int:
    """K, the numbers of a row that a backbone gives."""
    return getattr(backbone, "outputs", 1)


def first_order_of(backbone: nn.Module) -> FirstOrder | None:
    """The first-order weights of a backbone, if it has any."""
    return next((module for module in backbone.modules() if isinstance(module, FirstOrder)), None)


def with_backbone(model: M, trained: nn.Module) -> M:
    """The model, in evaluation mode, with the weights of a trained backbone that its own has."""
    state, wanted = trained.state_dict(), model.get_submodule("backbone").state_dict()
    model.get_submodule("backbone").load_state_dict({name: state[name] for name in wanted})
    return model.eval()


def assemble(
    schema: Schema,
    dim: int,
    allocation: Allocation,
    build: Build,
    backbone: MakeBackbone,
    options: Mapping[str, Any] | None = None,
) -> Model:
    """A fresh model with the embedding of an allocation; the embedding and the backbone omit dropped fields.

    Args:
        schema: all fields.
        dim: D.
        allocation: dims of the fields; 0 drops a field.
        build: makes the embedding of the kept fields.
        backbone, options: see `Model`.

    Raises:
        ValueError: if the allocation does not fit the schema.
    """
    allocation.check(schema)
    kept = schema.subset(allocation.kept())
    return Model(schema, build(kept, dim, allocation.of_kept()), backbone, options, kept)


@torch.no_grad()
def outputs(model: nn.Module, split: Split, batch_size: int = PREDICTED_TOGETHER) -> np.ndarray:
    """The outputs of a trained or served model in evaluation mode for all rows, in order, as float32."""
    training = model.training
    device = next((p.device for p in model.parameters()), torch.device("cpu"))  # a served model may have none
    model.eval()
    parts = [model(batch.ids.to(device)).float().cpu().numpy() for batch in Batches(split, batch_size)]
    model.train(training)
    return np.concatenate(parts)
