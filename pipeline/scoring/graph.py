"""A trained model of plain operations only, which torch.export and ONNX know."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.data.schema import PADDING, Schema
from pipeline.embeddings.batch import Direct, Occurrences
from pipeline.embeddings.contract import FieldEmbedding
from pipeline.embeddings.mixed import MixedTables, Packing, is_plain
from pipeline.models.dense import Dense
from pipeline.models.model import Model, first_order_of


class Graph(nn.Module):
    """ids (B, S) int64 -> answers (B,) of a trained model, the same for any B.

    Tables of mixed dimensions stay as they are. Any other embedding is written out as one table of float32 with the
    vector of every id.

    Args:
        model: trained.
        answer: makes answers of the outputs; see `pipeline.training.task.Task.answer`.

    Attributes:
        keeps_tables: whether the tables are those of the embedding, and not written out.
    """

    def __init__(self, model: Model, answer: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        kept, embedding = model.kept, model.embedding
        self.answer, self.dim, self.split = answer, embedding.dim, model.split
        self.num_fields = len(kept)
        self.slots: Tensor | None
        self.register_buffer("slots", None if model.slots is None else model.slots.clone(), persistent=False)
        self.backbone = copy.deepcopy(model.backbone)
        for module in self.backbone.modules():
            if isinstance(module, Dense):
                module.bits = 0  # its weights are settled
        if is_plain(embedding):
            self.keeps_tables, parts = True, _mixed(embedding, kept)
        else:
            self.keeps_tables, parts = False, [_written_out(embedding, kept)]
        self.groups = nn.ModuleList(Group(kept, part) for part in parts)
        order = np.concatenate([part.fields for part in parts])
        self.order: Tensor
        self.register_buffer("order", torch.from_numpy(np.argsort(order)), persistent=False)
        first_order = first_order_of(self.backbone)
        self.first_order: Group | None = None
        if first_order is not None and first_order.table is not None:
            weight = first_order.table.weight.detach()
            self.first_order = Group(kept, Part(np.arange(len(kept)), kept.first_rows, weight, None))
            first_order.table = None
        self.requires_grad_(False).eval()

    def forward(self, ids: Tensor) -> Tensor:
        if self.slots is not None:
            ids = ids.index_select(1, self.slots)
        embedded = torch.cat([group(ids) for group in self.groups], 1).index_select(1, self.order)
        sums = None
        if self.split:
            embedded, weights = embedded[:, :, : self.dim], embedded[:, :, self.dim :]
            sums = weights.sum((1, 2))
        elif self.first_order is not None:
            sums = self.first_order(ids).sum((1, 2))
        occ = Direct(ids, None, None, (ids.shape[0], self.num_fields), sums)  # backbones read only the sums
        return self.answer(self.backbone(occ, embedded))

    @property
    def table_bytes(self) -> int:
        """Bytes of the tables and projections."""
        return sum(tensor.numel() * tensor.element_size() for group in self.groups for tensor in group.buffers())


@dataclass(frozen=True)
class Part:
    """Fields whose rows lie in one table.

    Args:
        fields: (f,) numbers of the fields.
        base: (f,) row of each field's id 0.
        table: (R, d).
        projection: (f, d, D), or None.
    """

    fields: np.ndarray
    base: np.ndarray
    table: Tensor
    projection: Tensor | None


def _mixed(embedding: MixedTables, schema: Schema) -> list[Part]:
    packing = Packing(schema, embedding.dims)
    return [
        Part(
            packing.order[begin:end],
            packing.base[begin:end],
            embedding.tables[str(d)].get_parameter("weight").detach(),
            embedding.projections[str(d)].detach() if str(d) in embedding.projections else None,
        )
        for d, begin, end in zip(packing.distinct, packing.groups, packing.groups[1:], strict=False)
    ]


@torch.no_grad()
def _written_out(embedding: FieldEmbedding, schema: Schema) -> Part:
    """One table (R, D), or (R, D + 1) with first-order weights, of the vectors of all ids."""
    every = torch.arange(schema.num_rows)
    ends = torch.from_numpy(schema.first_rows + schema.cardinalities).int()
    occ = Occurrences(every, ends, every, every, every, None, None, None, (schema.num_rows, 1))
    return Part(np.arange(len(schema)), schema.first_rows, embedding.vectors(occ), None)


class Group(nn.Module):
    """ids (B, S) of all slots -> vectors (B, f, D) of the fields of a part.

    Args:
        schema: of the ids.
        part: of the fields.
    """

    def __init__(self, schema: Schema, part: Part) -> None:
        super().__init__()
        slots = [np.flatnonzero(schema.slot_fields == field) for field in part.fields]
        widths = [len(of_field) for of_field in slots]
        own = np.repeat(np.arange(len(slots)), widths)
        self.slots: Tensor
        self.base: Tensor
        self.table: Tensor
        self.projection: Tensor | None
        self.member: Tensor | None
        self.register_buffer("slots", torch.from_numpy(np.concatenate(slots)), persistent=False)
        self.register_buffer("base", torch.from_numpy(np.repeat(part.base, widths).astype(np.int64)), persistent=False)
        self.register_buffer("table", part.table.clone())
        self.register_buffer("projection", None if part.projection is None else part.projection.clone())
        member = torch.nn.functional.one_hot(torch.from_numpy(own)).float() if max(widths) > 1 else None
        self.register_buffer("member", member, persistent=False)  # (s, f): 1 where a slot belongs to a field

    def forward(self, ids: Tensor) -> Tensor:
        ids = ids.index_select(1, self.slots)
        vectors = nn.functional.embedding(ids.clamp(min=0) + self.base, self.table)  # (B, s, d)
        if self.member is not None:
            present = (ids != PADDING).to(vectors.dtype)
            shares = present / (present @ self.member).clamp(min=1).matmul(self.member.T)
            vectors = torch.einsum("bsd,bs,sf->bfd", vectors, shares, self.member)
        return vectors if self.projection is None else torch.einsum("bfd,fde->bfe", vectors, self.projection)
