"""A trained model as it is served: one file of packed tables in float32 or int8; lookups need no sort and no loop over
fields.

In training, a field of d < D dimensions has the vectors e P. Serving stores e L and Q instead, where P = L Q and the
rows of Q (d, D) are orthonormal. The vectors and the number of stored numbers stay the same, and the length of e L Q is
the length of e L. The first layer of an MLP is multiplied by Q only once, at its first use, so a prediction reads the
numbers that are looked up instead of F * D per row.
"""

from __future__ import annotations

import copy
import itertools
import json
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
from pipeline.models.model import Model
from pipeline.workflow.outputs import whole
from pipeline.workflow.plug import plug

FEW = 8  # batches of up to 8 rows gather all numbers at once; larger batches have one lookup per distinct dimension
BY_ROW = ("table", "scale", "table.weight")  # suffixes of the names of tensors that are read row by row


class Served(nn.Module):
    """ids (B, S) -> logits (B,) of a trained `Model`, from packed tables.

    In float32, vectors of fields of dimension D equal the trained ones exactly, all others up to rounding. In int8,
    every row has its own scale and is rounded to 255 levels; the error of a number is at most half of the scale.

    Args:
        schema: of the ids, all fields.
        dims: dimension of each field, by name; 0 if it was dropped.
        dim: D.
        packed: the tensors of `pack`.
        backbone: trained, on the kept fields.
        made: name and options of the backbone; `load` rebuilds it from them.

    Raises:
        ValueError: if the shapes of ``packed`` do not fit ``dims``.
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
        eye = torch.eye(dim).repeat(int((widths == dim).sum()), 1)
        self.lifts = Lifts(torch.cat([self.projection, eye]), widths.tolist(), packing.order.tolist())
        self.whole = len(self.projection) == 0  # all tables have width D and the order of the schema
        # Position of each slot's field among the packed fields, and the slots sorted by it.
        slot_place = np.argsort(packing.order)[kept.slot_fields]
        slots = np.argsort(slot_place, kind="stable")
        self._register_slots(kept, packing, slot_place, slots)
        self._register_entries(kept, packing, widths, slot_place, slots)
        self.requires_grad_(False).eval()

    def _register_slots(self, kept: Schema, packing: Packing, slot_place: np.ndarray, slots: np.ndarray) -> None:
        """Set the table of each distinct dim and the rows at which each slot's field begins, for `_many`."""
        cuts = np.cumsum([0, *(r * d for r, d in zip(packing.rows, packing.distinct, strict=True))]).tolist()
        row_cuts = np.cumsum([0, *packing.rows]).tolist()
        places = np.searchsorted(slot_place[slots], np.arange(len(kept) + 1))  # first slot of each packed field
        self.parts = [
            _Part(
                self.table[cuts[g] : cuts[g + 1]].view(packing.rows[g], int(d)),
                None if self.scale is None else self.scale[row_cuts[g] : row_cuts[g + 1]],
                slice(int(places[a]), int(places[b])),
                torch.from_numpy(places[a:b] - places[a]) if places[b] - places[a] > b - a else None,
            )
            for g, (d, (a, b)) in enumerate(zip(packing.distinct, itertools.pairwise(packing.groups), strict=True))
        ]
        all_kept = len(kept) == len(self.schema)
        chosen = None if all_kept else torch.from_numpy(self.schema.slots_of(kept.names))
        self.register_buffer("chosen", chosen, persistent=False)
        self._constant("offsets", kept.first_rows[kept.slot_fields], torch.int32)  # of each slot, in a joint table
        self._constant("slot_fields", kept.slot_fields)
        self._constant("slot_starts", np.cumsum(kept.widths) - kept.widths)
        self._constant("packed_slots", slots)
        self._constant("packed_base", packing.base[slot_place[slots]], torch.int32)

    def _register_entries(
        self, kept: Schema, packing: Packing, widths: np.ndarray, slot_place: np.ndarray, slots: np.ndarray
    ) -> None:
        """Set one entry for each number that a row of ids looks up, ordered by packed slot, for `_few`."""
        cuts = np.cumsum([0, *(r * d for r, d in zip(packing.rows, packing.distinct, strict=True))])
        row_cuts = np.cumsum([0, *packing.rows])
        slot_dims = widths[slot_place[slots]]
        entry_slots = np.repeat(np.arange(kept.num_slots), slot_dims)
        within = np.arange(len(entry_slots)) - np.repeat(np.cumsum(slot_dims) - slot_dims, slot_dims)
        group = np.searchsorted(packing.distinct, slot_dims)
        first = cuts[group] + packing.base[slot_place[slots]] * slot_dims
        begins = np.cumsum(widths) - widths  # first number of each packed field
        index = torch.int32 if len(self.table) < 2**31 else torch.int64
        self._constant("entry_slots", slots[entry_slots])
        self._constant("entry_dims", slot_dims[entry_slots], index)
        self._constant("entry_first", first[entry_slots] + within, index)
        self._constant("entry_columns", begins[slot_place[slots]][entry_slots] + within)
        scale_first = np.empty(kept.num_slots, dtype=np.int64)
        scale_first[slots] = row_cuts[group] + packing.base[slot_place[slots]]
        self._constant("scale_first", scale_first, torch.int32)

    def _constant(self, name: str, values: np.ndarray, dtype: torch.dtype = torch.int64) -> None:
        self.register_buffer(name, torch.as_tensor(values).to(dtype), persistent=False)

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
    def of(cls, model: Model, int8: bool = False) -> Served:
        """The served form of a trained model, on a CPU; the model itself is not changed.

        Args:
            model: trained.
            int8: whether the tables are rounded to int8 instead of float32.

        Raises:
            TypeError: if its embedding is not `MixedTables`, or a subclass that packs other tensors.
        """
        embedding = model.embedding
        if not isinstance(embedding, MixedTables) or type(embedding).packed is not MixedTables.packed:
            raise TypeError(f"only an embedding of MixedTables can be served, got {type(embedding).__name__}")
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
        """ids (B, S), weights (B, S) -> values (B, K), gathered number by number."""
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
        """ids (B, S), weights (B, S) -> values (B, K), gathered row by row with one lookup for each distinct dim."""
        rows = ids.index_select(1, self.packed_slots) + self.packed_base
        shares = None if weights is None else weights.index_select(1, self.packed_slots)
        own = [None if shares is None else shares[:, part.slots] for part in self.parts]
        return torch.cat([part.embed(rows[:, part.slots], o) for part, o in zip(self.parts, own, strict=True)], 1)

    def packed(self) -> dict[str, Tensor]:
        """The tensors of `pack`, for `pipeline.embeddings.cost.cost`."""
        tensors = {"table": self.table, "projection": self.projection}
        return tensors if self.scale is None else tensors | {"scale": self.scale}

    def save(self, path: str | Path) -> None:
        """Write the model to one safetensors file, whole or not at all."""
        tensors = {name: tensor.contiguous() for name, tensor in self.packed().items()}
        tensors |= {f"backbone.{name}": value.contiguous() for name, value in self.backbone.state_dict().items()}
        name, options = self.made
        about = {"schema": self.schema.to_dict(), "dims": self.dims, "dim": self.dim, "backbone": name}
        with whole(path) as draft:
            save_file(tensors, draft, {"served": json.dumps(about | {"options": dict(options)})})

    @classmethod
    def load(cls, path: str | Path) -> Served:
        """The model in a file that `save` wrote.

        Tables are memory-mapped, so rows that no batch looks up are never read. All other tensors are copied to aligned
        memory, because products of unaligned numbers may differ in the last bit.

        Raises:
            ValueError: naming the file, if it does not hold a complete model.
            FileNotFoundError: if the file does not exist.
        """
        path = Path(path)
        path.stat()  # the error of safetensors does not name a missing file
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
            why = f"is not a complete file of a served model ({type(error).__name__}: {error})"
            raise ValueError(f"{path}: {why}; save the model again") from error


class _Part:
    """The fields of one dimension d.

    Args:
        table: (rows, d).
        scale: (rows,) of int8 tables.
        slots: of these fields among the packed slots.
        bag_starts: (f,) first slot of each field; None if no field is a bag.
    """

    def __init__(self, table: Tensor, scale: Tensor | None, slots: slice, bag_starts: Tensor | None) -> None:
        self.table, self.scale, self.slots, self.bag_starts = table, scale, slots, bag_starts

    def rows(self, rows: Tensor) -> Tensor:
        """Row numbers (n,) -> (n, d) float32."""
        values = self.table.index_select(0, rows)
        if self.scale is None:
            return values
        return values.float().mul_(self.scale.index_select(0, rows).float()[:, None])

    def embed(self, rows: Tensor, weights: Tensor | None) -> Tensor:
        """Row numbers (B, s), and their weights (B, s) in bags -> (B, f * d)."""
        values = self.rows(rows.flatten())
        if self.bag_starts is not None:
            assert weights is not None
            starts = (torch.arange(len(rows))[:, None] * rows.shape[1] + self.bag_starts).flatten()
            every, shares = torch.arange(len(values)), weights.flatten()
            values = nn.functional.embedding_bag(every, values, starts, mode="sum", per_sample_weights=shares)
        return values.view(len(rows), -1)


def settle(embedding: MixedTables) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Tables and projections of the same vectors, with orthonormal rows in each projection.

    For P = L Q of every field, the rows e of the table become e L, and P becomes Q.

    Args:
        embedding: trained.

    Returns:
        Tables (rows, d) and projections (f, d, D) by dimension d, ascending; D has no projection.
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
    """The tensors that serve an embedding whose tables have N numbers and V rows in all.

    Args:
        embedding: trained.
        int8: whether the tables are rounded to int8 instead of float32.

    Returns:
        ``table`` (N,) float32 or int8, the concatenated tables of `settle`; ``scale`` (V,) float16, only with int8;
        ``projection`` (P, D), the concatenated projections, always in float32 because they are small.
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
    """Raise a ValueError unless the packed tensors have the shapes of the packing."""
    counts = np.diff(packing.groups)
    lifted = int(sum(c * d for c, d in zip(counts, packing.distinct, strict=True) if d < dim))
    shapes = {"table": (numbers,), "projection": (lifted, dim)}
    if "scale" in packed:
        shapes["scale"] = (sum(packing.rows),)
    packed_shapes = {name: tuple(tensor.shape) for name, tensor in packed.items()}
    if packed_shapes != shapes:
        raise ValueError(f"packed tensors must have the shapes {shapes}, got {packed_shapes}")
