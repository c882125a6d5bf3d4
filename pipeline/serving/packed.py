"""A trained model as it is served: packed tables, in float32 or int8, one file, nothing sorted, no loop over fields.

A field of d < D dimensions is e P in training. Serving keeps e L and Q instead, where P = L Q and the rows of Q (d, D)
are orthonormal: as many numbers, the same vectors, and as long as what the table holds. So the first layer of an MLP is
multiplied with Q once, when the model is loaded, and a row of a batch costs the numbers that were looked up, not F * D.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.data.schema import PADDING, Schema
from pipeline.embeddings.batch import Direct
from pipeline.embeddings.mixed import MixedTables, Packing
from pipeline.embeddings.rounded import quantise
from pipeline.models.factored import Factored, Lifts
from pipeline.models.model import CTRModel
from pipeline.workflow.plug import plug

FEW = 8  # rows up to which all numbers of a batch are gathered at once; more go dimension by dimension
BY_ROW = ("table", "scale", "table.weight")  # ends of the names of tensors whose rows are taken one by one


class Served(nn.Module):
    """ids (B, S) -> logits (B,) of a trained `CTRModel`, from packed tables.

    In float32 fields as wide as D have their trained vectors bit for bit, the others up to rounding. In int8 every
    row is rounded to 255 levels of its own: no number is off by more than half of the row's scale.

    Args:
        schema: of the ids, all fields.
        dims: dimension of each field; 0 where it was dropped.
        dim: D, the width that the backbone sees.
        packed: what `pack` gives.
        backbone: of the kept fields, trained.
        made: name and options that `load` makes the backbone from.
    """

    def __init__(
        self,
        schema: Schema,
        dims: Mapping[str, int],
        dim: int,
        packed: Mapping[str, Tensor],
        backbone: nn.Module,
        made: tuple[str, Mapping[str, Any]],
    ) -> None:
        super().__init__()
        self.schema, self.dims, self.dim, self.made = schema, dict(dims), dim, made
        kept = schema.subset([name for name, d in dims.items() if d])
        packing = Packing(kept, dims)
        self.backbone = backbone
        self.num_fields, self.has_bags = len(kept), kept.num_slots > len(kept)
        widths = packing.distinct.repeat(np.diff(packing.groups))  # of the packed fields
        _check(packed, sum(r * int(d) for r, d in zip(packing.rows, packing.distinct, strict=True)), packing, dim)
        self.table, self.scale, self.projection = packed["table"], packed.get("scale"), packed["projection"]
        cuts = np.cumsum([0, *(r * d for r, d in zip(packing.rows, packing.distinct, strict=True))]).tolist()
        row_cuts = np.cumsum([0, *packing.rows]).tolist()
        eye = torch.eye(dim).repeat(int((widths == dim).sum()), 1)
        self.lifts = Lifts(torch.cat([self.projection, eye]), widths.tolist(), packing.order.tolist())
        self.whole = len(self.projection) == 0  # plain tables of width D, packed as the schema has them

        # Slots by packed field, and of each distinct dim the table that `_many` looks up in.
        place = np.argsort(packing.order)  # of the schema's fields among the packed ones
        slot_place = place[kept.slot_fields]
        slots = np.argsort(slot_place, kind="stable")
        places = np.searchsorted(slot_place[slots], np.arange(len(kept) + 1))  # where each packed field's slots begin
        self.parts = [
            _Part(
                self.table[cuts[g] : cuts[g + 1]].view(packing.rows[g], int(d)),
                None if self.scale is None else self.scale[row_cuts[g] : row_cuts[g + 1]],
                slice(int(places[a]), int(places[b])),
                torch.from_numpy(places[a:b] - places[a]) if places[b] - places[a] > b - a else None,
            )
            for g, (d, (a, b)) in enumerate(zip(packing.distinct, itertools.pairwise(packing.groups), strict=True))
        ]

        def constant(name: str, values: np.ndarray, dtype: torch.dtype = torch.int64) -> None:
            self.register_buffer(name, torch.as_tensor(values).to(dtype), persistent=False)

        all_kept = len(kept) == len(schema)
        self.register_buffer("chosen", None if all_kept else torch.from_numpy(schema.slots_of(kept.names)), False)
        constant("offsets", kept.first_rows[kept.slot_fields], torch.int32)  # in tables of all fields, as first order
        constant("slot_fields", kept.slot_fields)
        constant("slot_starts", np.cumsum(kept.widths) - kept.widths)
        constant("packed_slots", slots)
        constant("packed_base", packing.base[slot_place[slots]], torch.int32)
        # One entry for each number that a row of ids looks up, by packed slot, for `_few`.
        slot_dims = widths[slot_place[slots]]
        entry_slots = np.repeat(np.arange(kept.num_slots), slot_dims)
        within = np.arange(len(entry_slots)) - np.repeat(np.cumsum(slot_dims) - slot_dims, slot_dims)
        group = np.searchsorted(packing.distinct, slot_dims)
        first = np.array(cuts)[group] + packing.base[slot_place[slots]] * slot_dims
        begins = np.cumsum(widths) - widths  # of each packed field's numbers
        index = torch.int32 if len(self.table) < 2**31 else torch.int64
        constant("entry_slots", slots[entry_slots])
        constant("entry_dims", slot_dims[entry_slots], index)
        constant("entry_first", first[entry_slots] + within, index)
        constant("entry_columns", begins[slot_place[slots]][entry_slots] + within)
        scale_first = np.empty(kept.num_slots, dtype=np.int64)
        scale_first[slots] = np.array(row_cuts)[group] + packing.base[slot_place[slots]]
        constant("scale_first", scale_first, torch.int32)
        self.requires_grad_(False).eval()

    chosen: Tensor | None
    offsets: Tensor
    slot_fields: Tensor
    slot_starts: Tensor
    packed_slots: Tensor
    packed_base: Tensor
    entry_slots: Tensor
    entry_dims: Tensor
    entry_first: Tensor
    entry_columns: Tensor
    scale_first: Tensor

    @classmethod
    def of(cls, model: CTRModel, int8: bool = False) -> Served:
        """The inference form of a trained model, on a CPU; the model itself is left as it is.

        Raises:
            TypeError: if its embedding is not of `MixedTables`, or of a kind that packs something else than its tables.
        """
        embedding = model.embedding
        if not isinstance(embedding, MixedTables) or type(embedding).packed is not MixedTables.packed:
            raise TypeError(f"only MixedTables have an inference form, however {type(embedding).__name__}")
        dims = dict.fromkeys(model.schema.names, 0) | embedding.dims
        made = type(model.backbone).__module__.rpartition(".")[2], model.options
        return cls(model.schema, dims, embedding.dim, pack(embedding, int8), copy.deepcopy(model.backbone), made)

    @torch.inference_mode()
    def forward(self, ids: Tensor) -> Tensor:
        if self.chosen is not None:
            ids = ids.index_select(1, self.chosen)
        weights = starts = None
        if self.has_bags:
            present = ids != PADDING
            sizes = torch.zeros(len(ids), self.num_fields).index_add_(1, self.slot_fields, present.float())
            weights = present / sizes.clamp_(min=1).index_select(1, self.slot_fields)
            starts = (torch.arange(len(ids))[:, None] * ids.shape[1] + self.slot_starts).flatten()
            ids = ids.clamp(min=0)
        shares = None if weights is None else weights.flatten()
        occ = Direct((ids + self.offsets).flatten(), starts, shares, (len(ids), self.num_fields))
        if self.whole:
            values = self.parts[0].rows(occ.rows) if weights is None else self._many(ids, weights)
            return self.backbone(occ, values.view(len(ids), self.num_fields, self.dim))  # type: ignore[no-any-return]
        values = self._few(ids, weights) if len(ids) <= FEW else self._many(ids, weights)
        embedded = Factored(values, self.lifts)
        takes = getattr(self.backbone, "factored", False)
        return self.backbone(occ, embedded if takes else embedded.dense())  # type: ignore[no-any-return]

    def _few(self, ids: Tensor, weights: Tensor | None) -> Tensor:
        """(B, S), (B, S) -> (B, K): number by number."""
        drawn = ids.to(self.entry_first.dtype).index_select(1, self.entry_slots)
        entries = torch.addcmul(self.entry_first, drawn, self.entry_dims)
        values = self.table.index_select(0, entries.flatten()).view(entries.shape)
        if self.scale is not None:
            scale = self.scale.index_select(0, (ids + self.scale_first).flatten()).view(ids.shape).float()
            weights = scale if weights is None else scale * weights
            values = values.float()
        if weights is not None:
            values = values * weights.index_select(1, self.entry_slots)
        if not self.has_bags:
            return values
        return torch.zeros(len(ids), len(self.lifts.stacked)).index_add_(1, self.entry_columns, values)

    def _many(self, ids: Tensor, weights: Tensor | None) -> Tensor:
        """(B, S), (B, S) -> (B, K): row by row, a lookup for each distinct dim."""
        rows = ids.index_select(1, self.packed_slots) + self.packed_base
        shares = None if weights is None else weights.index_select(1, self.packed_slots)
        own = [None if shares is None else shares[:, part.slots] for part in self.parts]
        return torch.cat([part.embed(rows[:, part.slots], o) for part, o in zip(self.parts, own, strict=True)], 1)

    def packed(self) -> dict[str, Tensor]:
        """What is kept to serve the embedding, as `pack` gave it; `pipeline.budget.cost` counts it."""
        sizes = {"table": self.table, "projection": self.projection}
        return sizes if self.scale is None else sizes | {"scale": self.scale}

    def save(self, path: str | Path) -> None:
        """Write all that `load` needs to one safetensors file, whole or not at all."""
        tensors = {name: tensor.contiguous() for name, tensor in self.packed().items()}
        tensors |= {f"backbone.{name}": value.contiguous() for name, value in self.backbone.state_dict().items()}
        name, options = self.made
        about = {"schema": self.schema.to_dict(), "dims": self.dims, "dim": self.dim, "backbone": name}
        final = Path(path)
        draft = final.with_name(f".{final.name}.{os.getpid()}")
        try:
            save_file(tensors, draft, {"served": json.dumps(about | {"options": dict(options)})})
            draft.replace(final)
        finally:
            draft.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> Served:
        """Memory-map a file that `save` wrote: what no row asks for never leaves the disk.

        All but the tables is copied, to where memory is aligned: products of numbers elsewhere differ in the last bit.

        Raises:
            ValueError: naming the file, if it holds no whole model.
            FileNotFoundError: if there is none.
        """
        path = Path(path)
        path.stat()  # safetensors' own error does not say which file is missing
        try:
            with safe_open(path, "pt") as file:
                about = json.loads((file.metadata() or {})["served"])
                mapped = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            tensors = {name: value if name.endswith(BY_ROW) else value.clone() for name, value in mapped.items()}
            schema, dims = Schema.from_dict(about["schema"]), about["dims"]
            kept = schema.subset([name for name, d in dims.items() if d])
            with torch.device("meta"):
                backbone = plug("backbones", about["backbone"]).Backbone(kept, about["dim"], **about["options"])
            state = {k.removeprefix("backbone."): v for k, v in tensors.items() if k.startswith("backbone.")}
            backbone.load_state_dict(state, assign=True)
            packed = {name: tensor for name, tensor in tensors.items() if not name.startswith("backbone.")}
            return cls(schema, dims, about["dim"], packed, backbone, (about["backbone"], about["options"]))
        except (SafetensorError, RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            why = f"is no whole file of a served model ({type(error).__name__}: {error})"
            raise ValueError(f"{path}: {why}; save the model again") from error


class _Part:
    """The fields of one dimension d: their table, scales and slots, and where the bags begin among those."""

    def __init__(self, table: Tensor, scale: Tensor | None, slots: slice, bag_starts: Tensor | None) -> None:
        self.table, self.scale, self.slots, self.bag_starts = table, scale, slots, bag_starts

    def rows(self, rows: Tensor) -> Tensor:
        """(n,) -> (n, d) float32."""
        values = self.table.index_select(0, rows)
        if self.scale is None:
            return values
        return values.float().mul_(self.scale.index_select(0, rows).float()[:, None])

    def embed(self, rows: Tensor, weights: Tensor | None) -> Tensor:
        """Rows (B, s), with shares (B, s) in their bags -> (B, f * d)."""
        values = self.rows(rows.flatten())
        if self.bag_starts is not None:
            assert weights is not None
            starts = (torch.arange(len(rows))[:, None] * rows.shape[1] + self.bag_starts).flatten()
            every, shares = torch.arange(len(values)), weights.flatten()
            values = nn.functional.embedding_bag(every, values, starts, mode="sum", per_sample_weights=shares)
        return values.view(len(rows), -1)


def settle(embedding: MixedTables) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Tables (rows, d) and projections (f, d, D) of the same vectors, the rows of each projection orthonormal.

    With P = L Q of every field, rows e become e L and P becomes Q. By ascending dimension; D has no projection.
    """
    tables, projections = {}, {}
    for d, start, stop in zip(embedding.distinct.tolist(), embedding.groups, embedding.groups[1:], strict=False):
        table = embedding.tables[str(d)].get_parameter("weight").detach()
        if d < embedding.dim:
            across, down = torch.linalg.qr(embedding.projections[str(d)].detach().double().transpose(1, 2))
            sizes = embedding.cardinalities[start:stop]
            fields = zip(table.split(sizes), down, strict=True)
            table = torch.cat([(rows.double() @ lower.T).float() for rows, lower in fields])
            projections[d] = across.transpose(1, 2).float().contiguous()
        tables[d] = table
    return tables, projections


def pack(embedding: MixedTables, int8: bool = False) -> dict[str, Tensor]:
    """The tensors that serve an embedding, N numbers and V rows in its tables.

    Returns:
        ``table`` (N,) float32 or int8, the tables that `settle` gives by ascending dimension one after the other;
        ``scale`` (V,) float16, with int8 alone; ``projection`` (P, D) float32, the projections below each other.
        Those are small, and stay as they are.
    """
    tables, projections = settle(embedding)
    lifts = [projection.flatten(0, 1) for projection in projections.values()]
    packed = {"projection": torch.cat(lifts) if lifts else torch.empty(0, embedding.dim)}
    if not int8:
        return {"table": torch.cat([table.flatten() for table in tables.values()])} | packed
    rounded = [quantise(table) for table in tables.values()]
    packed["table"] = torch.cat([values.flatten() for values, _ in rounded])
    packed["scale"] = torch.cat([scale for _, scale in rounded])
    return packed


def _check(packed: Mapping[str, Tensor], numbers: int, packing: Packing, dim: int) -> None:
    """Refuse tensors that are not of the shapes that a packing asks for."""
    counts = np.diff(packing.groups)
    lifted = int(sum(c * d for c, d in zip(counts, packing.distinct, strict=True) if d < dim))
    shapes = {"table": (numbers,), "projection": (lifted, dim)}
    if "scale" in packed:
        shapes["scale"] = (sum(packing.rows),)
    found = {name: tuple(tensor.shape) for name, tensor in packed.items()}
    if found != shapes:
        raise ValueError(f"packed tensors must have the shapes {shapes}, however: {found}")
