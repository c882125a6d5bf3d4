"""A trained model as it is served: packed tables, in float32 or int8, one file, nothing sorted, no loop over fields."""

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

from pipeline.embeddings import Direct, MixedTables, Packing
from pipeline.model import CTRModel
from pipeline.plug import plug
from pipeline.schema import PADDING, Schema

FEW = 8  # rows up to which all numbers of a batch are gathered and projected at once; more go dimension by dimension


class Served(nn.Module):
    """ids (B, S) -> logits (B,) of a trained `CTRModel`, from packed tables.

    In float32 the rows that are looked up are the trained ones bit for bit, and so are the vectors of fields as
    wide as D. Projections sum the same d products; how a matrix product orders them may depend on the batch, for
    the trained model too. In int8 every row is rounded to 255 levels of its own: no number is off by more than
    half of the row's scale.

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
        self.quantised = "scale" in packed
        _check(packed, sum(r * int(d) for r, d in zip(packing.rows, packing.distinct, strict=True)), packing, dim)
        self.table, self.scale = packed["table"], packed.get("scale")
        cuts = np.cumsum([0, *(r * d for r, d in zip(packing.rows, packing.distinct, strict=True))]).tolist()
        row_cuts = np.cumsum([0, *packing.rows]).tolist()
        eye = torch.eye(dim).repeat(int((widths == dim).sum()), 1)
        lifts = torch.cat([packed.get("projection", eye[:0]), eye])  # (sum of dims, D)

        # Slots by packed field, and of each distinct dim the parts that `_many` works on.
        place = np.argsort(packing.order)  # of the schema's fields among the packed ones
        slot_place = place[kept.slot_fields]
        slots = np.argsort(slot_place, kind="stable")
        places = np.searchsorted(slot_place[slots], np.arange(len(kept) + 1))  # where each packed field's slots begin
        lift_cuts = np.cumsum([0, *widths]).tolist()
        self.parts = [
            _Part(
                self.table[cuts[g] : cuts[g + 1]].view(packing.rows[g], int(d)),
                None if self.scale is None else self.scale[row_cuts[g] : row_cuts[g + 1]],
                lifts[lift_cuts[a] : lift_cuts[b]].view(b - a, int(d), dim) if d < dim else None,
                slice(a, b),
                slice(int(places[a]), int(places[b])),
                torch.from_numpy(places[a:b] - places[a]) if places[b] - places[a] > b - a else None,
            )
            for g, (d, (a, b)) in enumerate(zip(packing.distinct, itertools.pairwise(packing.groups), strict=True))
        ]
        self.whole = len(self.parts) == 1 and self.parts[0].lift is None  # plain tables of width D

        def constant(name: str, values: np.ndarray, dtype: torch.dtype = torch.int64) -> None:
            self.register_buffer(name, torch.as_tensor(values).to(dtype), persistent=False)

        all_kept = len(kept) == len(schema)
        self.register_buffer("chosen", None if all_kept else torch.from_numpy(schema.slots_of(kept.names)), False)
        constant("offsets", kept.first_rows[kept.slot_fields], torch.int32)  # in tables of all fields, as first order
        constant("slot_fields", kept.slot_fields)
        constant("slot_starts", np.cumsum(kept.widths) - kept.widths)
        constant("unpacked", place)
        constant("packed_slots", slots)
        constant("packed_base", packing.base[slot_place[slots]][:, None], torch.int32)
        # One entry for each number that a row of ids looks up, slot by slot, for `_few`.
        slot_dims = widths[slot_place]
        entry_slots = np.repeat(np.arange(kept.num_slots), slot_dims)
        within = np.arange(len(entry_slots)) - np.repeat(np.cumsum(slot_dims) - slot_dims, slot_dims)
        group = np.searchsorted(packing.distinct, slot_dims)
        first = np.array(cuts)[group] + packing.base[slot_place] * slot_dims
        constant("entry_slots", entry_slots)
        constant("entry_dims", slot_dims[entry_slots])
        constant("entry_first", first[entry_slots] + within)
        constant("entry_lifts", np.array(lift_cuts)[slot_place][entry_slots] + within)
        entries = np.bincount(kept.slot_fields[entry_slots], minlength=len(kept))
        constant("entry_starts", np.cumsum(entries) - entries)
        constant("scale_first", np.array(row_cuts)[group] + packing.base[slot_place], torch.int32)
        self.register_buffer("lifts", lifts, persistent=False)
        self.requires_grad_(False).eval()

    chosen: Tensor | None
    offsets: Tensor
    slot_fields: Tensor
    slot_starts: Tensor
    unpacked: Tensor
    packed_slots: Tensor
    packed_base: Tensor
    entry_slots: Tensor
    entry_dims: Tensor
    entry_first: Tensor
    entry_lifts: Tensor
    entry_starts: Tensor
    scale_first: Tensor
    lifts: Tensor

    @classmethod
    def of(cls, model: CTRModel, int8: bool = False) -> Served:
        """The inference form of a trained model, on a CPU; the model itself is left as it is.

        Raises:
            TypeError: if its embedding is not of `MixedTables`.
        """
        embedding = model.embedding
        if not isinstance(embedding, MixedTables):
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
        rows = (ids + self.offsets).flatten()
        occ = Direct(rows, starts, None if weights is None else weights.flatten(), (len(ids), self.num_fields))
        embed = self._few if len(ids) <= FEW and not self.whole else self._many
        logits: Tensor = self.backbone(occ, embed(ids, weights))
        return logits

    def _few(self, ids: Tensor, weights: Tensor | None) -> Tensor:
        """(B, S), (B, S) -> (B, F, D): every number times its row of its field's projection, summed by field."""
        entries = torch.addcmul(self.entry_first, ids.long().index_select(1, self.entry_slots), self.entry_dims)
        values = self.table.take(entries)
        if self.scale is not None:
            scale = self.scale.take((ids + self.scale_first).long()).float()
            weights = scale if weights is None else scale * weights
            values = values.float()
        if weights is not None:
            values = values * weights.index_select(1, self.entry_slots)
        lifts, starts = self.entry_lifts, self.entry_starts
        if len(ids) > 1:
            lifts = lifts.repeat(len(ids))
            starts = (torch.arange(len(ids))[:, None] * entries.shape[1] + starts).flatten()
        lifted = nn.functional.embedding_bag(
            lifts, self.lifts, starts, mode="sum", per_sample_weights=values.flatten()
        )
        return lifted.view(len(ids), self.num_fields, self.dim)

    def _many(self, ids: Tensor, weights: Tensor | None) -> Tensor:
        """(B, S), (B, S) -> (B, F, D): a lookup and a batched product for each distinct dim."""
        if self.whole and weights is None:
            rows = (ids + self.offsets).flatten()  # with one dimension fields are packed as in the schema
            return self.parts[0].rows(rows).view(len(ids), self.num_fields, self.dim)
        rows = ids.t().index_select(0, self.packed_slots) + self.packed_base
        shares = None if weights is None else weights.t().index_select(0, self.packed_slots)
        embedded = torch.empty(self.num_fields, len(ids), self.dim)  # so that every product writes to one block
        for part in self.parts:
            part.embed(rows[part.slots], None if shares is None else shares[part.slots], embedded[part.fields])
        return embedded.transpose(0, 1).index_select(1, self.unpacked)

    def packed(self) -> dict[str, Tensor]:
        """What is kept to serve the embedding, as `pack` gave it; `pipeline.budget.cost` counts it."""
        sizes = {"table": self.table, "projection": self.lifts[: self._projected()]}
        return sizes if self.scale is None else sizes | {"scale": self.scale}

    def _projected(self) -> int:
        return sum(d for d in self.dims.values() if d < self.dim)

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

        Raises:
            ValueError: naming the file, if it holds no whole model.
            FileNotFoundError: if there is none.
        """
        path = Path(path)
        path.stat()  # safetensors' own error does not say which file is missing
        try:
            with safe_open(path, "pt") as file:
                about = json.loads((file.metadata() or {})["served"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
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
    """The fields of one dimension d: their table, scales, projections, places among packed fields and slots."""

    def __init__(
        self,
        table: Tensor,
        scale: Tensor | None,
        lift: Tensor | None,
        fields: slice,
        slots: slice,
        bag_starts: Tensor | None,
    ) -> None:
        self.table, self.scale, self.lift = table, scale, lift
        self.fields, self.slots, self.bag_starts = fields, slots, bag_starts

    def rows(self, rows: Tensor) -> Tensor:
        """(n,) -> (n, d) float32."""
        values = self.table.index_select(0, rows)
        if self.scale is None:
            return values
        return values.float().mul_(self.scale.index_select(0, rows).float()[:, None])

    def embed(self, rows: Tensor, weights: Tensor | None, out: Tensor) -> None:
        """Write rows (s, B), with shares (s, B) in their bags, to (f, B, D)."""
        fields, batch, dim = out.shape
        if self.bag_starts is None:
            if self.lift is None and self.scale is None:
                torch.index_select(self.table, 0, rows.flatten(), out=out.view(-1, dim))
                return
            values = self.rows(rows.flatten()).view(fields, batch, -1)
        else:
            assert weights is not None
            starts = (torch.arange(batch)[:, None] * len(rows) + self.bag_starts).flatten()
            every = torch.arange(rows.numel())
            shares = weights.t().flatten()
            values = nn.functional.embedding_bag(
                every, self.rows(rows.t().flatten()), starts, mode="sum", per_sample_weights=shares
            )
            values = values.view(batch, fields, -1).transpose(0, 1)
        if self.lift is None:
            out.copy_(values)
        else:
            torch.bmm(values, self.lift, out=out)


def pack(embedding: MixedTables, int8: bool = False) -> dict[str, Tensor]:
    """The tensors that serve an embedding, N numbers and V rows in its tables.

    Returns:
        ``table`` (N,) float32 or int8, the tables by ascending dimension one after the other; ``scale`` (V,)
        float16, with int8 alone; ``projection`` (P, D) float32, the projections below each other. Those are small,
        and stay as they are.
    """
    tables = {int(d): embedding.tables[str(d)].get_parameter("weight").detach() for d in embedding.distinct}
    lifts = [embedding.projections[str(d)].detach().flatten(0, 1) for d in tables if d < embedding.dim]
    packed = {"projection": torch.cat(lifts) if lifts else torch.empty(0, embedding.dim)}
    if not int8:
        return {"table": torch.cat([table.flatten() for table in tables.values()])} | packed
    rounded = [quantise(table) for table in tables.values()]
    packed["table"] = torch.cat([values.flatten() for values, _ in rounded])
    packed["scale"] = torch.cat([scale for _, scale in rounded])
    return packed


def quantise(table: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric int8 with a scale for each row: (V, d) float32 -> (V, d) int8, (V,) float16.

    A row's scale is its largest magnitude over 127, rounded up to float16 so that nothing is clipped; then
    ``|x - q * scale| <= scale / 2``. A row of zeros has scale 0.

    Raises:
        ValueError: for a number that is not finite, or too large for a scale in float16 (8.3 million).
    """
    largest = table.abs().amax(1).double()
    exact = largest / 127
    scale = exact.half()
    scale = torch.where(scale.double() < exact, _next_half(scale), scale)
    if not bool(torch.isfinite(scale).all()):
        row = int(torch.isfinite(scale).logical_not().nonzero()[0])
        found = float(largest[row])
        raise ValueError(f"row {row} of a table goes up to {found:g}, which int8 cannot hold; use float32")
    steps = torch.where(scale > 0, scale, 1).double()[:, None]
    return (table / steps).round_().to(torch.int8), scale


def _next_half(values: Tensor) -> Tensor:
    """The next larger float16 of non-negative ones."""
    return (values.view(torch.int16) + 1).view(torch.float16)


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
