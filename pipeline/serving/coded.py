"""Coded tables as they are served: the codes stay a string of bits in memory, and only looked-up rows are decoded.

A code is a run of up to 8 bits anywhere in the string, so it lies within two bytes. A row of codes becomes a row of
coefficients with the low ends and steps of its block, and then a vector with the decoder and the mean of its field.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor, nn

from pipeline.coding import arrays
from pipeline.coding.store import Blocks, Levels
from pipeline.data.schema import UNKNOWN, Schema
from pipeline.embeddings.batch import Direct
from pipeline.embeddings.coded import CodedTables
from pipeline.embeddings.table import field_of, grouped_matmul
from pipeline.models.factored import Few, Folds, Repeated, Vectors
from pipeline.serving.tables import FEW, ServedTables


class BitTables(ServedTables):
    """Coded tables of F fields, see `pipeline.embeddings.coded.CodedTables`.

    Args:
        schema: F kept fields.
        dim: D.
        packed: the tensors of `CodedTables.packed`.

    Raises:
        ValueError: if the lengths of the tensors do not fit the plan that is among them.
    """

    def __init__(self, schema: Schema, dim: int, packed: Mapping[str, Tensor]) -> None:
        self.schema, self.dim, self.tensors, self.folds = schema, dim, dict(packed), Folds()
        numbers, width = schema.cardinalities, packed["decoder"].shape[1]
        self.first_order = width > dim
        described = packed["plan.blocks"].numpy(), packed["plan.cuts"].numpy(), packed["plan.bits"]
        blocks = Blocks(arrays.read_plans(*described, numbers.tolist(), width), width)
        blocks.check({**packed, "codes": packed["table"]})
        # Fields in the order of coding: as the ids, but the unknown id, 0, at the end.
        first, number = schema.first_rows[schema.slot_fields], numbers[schema.slot_fields]
        self.first, self.last = first - 1, first + number - 1
        self.many_first, self.many_last = torch.from_numpy(self.first).int(), torch.from_numpy(self.last).int()
        self.ends = np.append(blocks.begins.numpy()[1:], schema.num_rows)  # of the blocks
        self.decoder = _decoders(packed, blocks)
        self.to_vectors = self.decoder.numpy()[:, :, :dim]  # (F, K, D)
        self.to_first_order = self.decoder.numpy()[:, :, dim].copy() if self.first_order else None  # (F, K)
        self.few, self.many = _CodeByCode(packed, blocks), _RowByRow(packed, blocks)
        # An index that repeats no field is a slice, because a slice copies nothing.
        self.slot_fields = slice(None) if schema.num_slots == len(schema) else schema.slot_fields
        self.field_ends = torch.from_numpy(schema.first_rows + numbers).int()
        self.block_ends = torch.from_numpy(self.ends).int()

    @classmethod
    def of(cls, embedding: CodedTables) -> BitTables:
        """The served form of a trained embedding.

        Raises:
            ValueError: if the embedding is not coded yet.
        """
        if not bool(embedding.coded):
            raise ValueError("tables can be served after they are coded; call finish() first")
        return cls(embedding.schema, embedding.dim, embedding.packed())

    @classmethod
    def restored(cls, schema: Schema, dim: int, packed: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Self:
        return cls(schema, dim, packed)

    def settings(self) -> dict[str, Any]:
        return {}

    def packed(self) -> dict[str, Tensor]:
        return dict(self.tensors)

    def look_up(self, ids: Tensor, occ: Direct) -> tuple[Direct, Vectors]:
        return self._few(ids.numpy(), occ) if len(ids) <= FEW else self._many(ids, occ)

    def _few(self, ids: np.ndarray, occ: Direct) -> tuple[Direct, Vectors]:
        """Every occurrence is decoded by itself."""
        places = np.where(ids, ids + self.first, self.last).ravel()  # the unknown id is 0
        coefficients = self.few.read(places, self.ends.searchsorted(places, "right")).reshape(*ids.shape, -1)
        vectors = torch.from_numpy(coefficients[:, :, None] @ self.to_vectors[self.slot_fields])
        few = Few(occ.averaged(vectors.view(len(places), -1)), self.folds)
        if self.to_first_order is None:
            return occ, few
        if occ.weights is None:
            sums = torch.from_numpy(coefficients.reshape(len(ids), -1) @ self.to_first_order.ravel())
        else:
            each = torch.from_numpy((coefficients * self.to_first_order[self.slot_fields]).sum(2))
            sums = (each * occ.weights.view(ids.shape)).sum(1)
        return Direct(occ.rows, occ.bag_starts, occ.weights, occ.shape, sums), few

    def _many(self, ids: Tensor, occ: Direct) -> tuple[Direct, Vectors]:
        """Every distinct row is decoded once. Distinct rows are sorted, so those of a block or field are contiguous."""
        places = torch.where(ids == UNKNOWN, self.many_last, ids + self.many_first)
        distinct, inverse = torch.unique(places, return_inverse=True)
        block = field_of(torch.searchsorted(distinct, self.block_ends), distinct)
        field_ends = torch.searchsorted(distinct, self.field_ends, out_int32=True)
        rows = grouped_matmul(self.many.read(distinct, block), self.decoder, field_ends)
        repeated = Repeated(rows, self.dim, field_ends, inverse.flatten().int(), occ, self.folds)
        if self.first_order:
            occ = replace(occ, first_order=repeated.sums[:, self.dim])
        return occ, repeated


def _decoders(packed: Mapping[str, Tensor], blocks: Blocks) -> Tensor:
    """(F, K, K): decoder of each field, with its mean as one row more, padded with zeros to a multiple of 4.

    The coefficient of the mean is 1, see `_levels`. Fields that are coded by rows have no decoder and no mean.
    """
    width = packed["decoder"].shape[1]
    decoder, mean = torch.eye(width) * ~blocks.centred[:, None, None], torch.zeros(len(blocks.centred), width)
    decoder[blocks.decoded], mean[blocks.centred] = packed["decoder"].float(), packed["mean"].float()
    return nn.functional.pad(torch.cat([decoder, mean[:, None]], 1), (0, -width % 4, 0, -(width + 1) % 4))


def _records(packed: Mapping[str, Tensor], blocks: Blocks) -> np.ndarray:
    """What reading needs to know of each block.

    Returns:
        (blocks,) records: ``begin``, the first bit of place 0 if it were in the block; ``width``, bits of a row;
        ``scale``, which is added to a place for the number of its scale; and of K components ``offset``, first bits
        within a row, ``mask``, ones as wide as the codes, ``low`` and ``step``. Those that `_decoders` adds have no
        bits; the level of the mean is 1 and that of the others is 0.
    """
    layout, begins, alone = blocks.layout, blocks.begins.numpy(), blocks.by_rows
    levels = Levels.stored(blocks, packed["quantiser"], packed["scale"])
    low, step = levels.low.float(), levels.step.float()
    low[alone], step[alone] = 1 - 2.0 ** (blocks.bits[alone] - 1), 1.0  # times the scale of the row
    width = low.shape[1]
    wider = (0, 0), (0, 1 + -(width + 1) % 4)
    fields = {
        "begin": layout.begins - begins * layout.widths,
        "width": layout.widths,
        "scale": np.where(alone, blocks.scales.numpy() - begins, blocks.num_scales),
        "offset": np.pad(layout.offsets, wider),
        "mask": np.pad((1 << layout.bits) - 1, wider),
        "low": np.pad(low.numpy(), wider),
        "step": np.pad(step.numpy(), wider),
    }
    fields["low"][:, width] = 1
    types = {"mask": np.int32, "low": np.float32, "step": np.float32}
    described = [(name, types.get(name, np.int64), values.shape[1:]) for name, values in fields.items()]
    records = np.empty(len(begins), described)
    for name, values in fields.items():
        records[name] = values
    return records


def _scales(packed: Mapping[str, Tensor]) -> np.ndarray:
    """(scales + 1,) float32 scales of the rows that are coded by rows, then 1 for all other rows."""
    return np.append(packed["scale"].float().numpy(), np.float32(1))


class _CodeByCode:
    """Reads the coefficients of a few rows: two bytes for each code, in as few calls as possible.

    Args:
        packed: the tensors of `CodedTables.packed`.
        blocks: of the plan.
    """

    def __init__(self, packed: Mapping[str, Tensor], blocks: Blocks) -> None:
        self.data, self.scale, self.records = packed["table"].numpy(), _scales(packed), _records(packed, blocks)
        self.next = self.data[1:]
        self.eight = np.array([8], np.int32)  # an array, so that a shifted byte becomes an int32

    def read(self, places: np.ndarray, block: np.ndarray) -> np.ndarray:
        """Places (u,) of rows and their blocks (u,) -> coefficients (u, K) float32."""
        record = self.records.take(block)
        bits = (record["begin"] + places * record["width"])[:, None] + record["offset"]
        byte = bits >> 3
        window = self.data.take(byte) | self.next.take(byte) << self.eight
        codes = window >> (bits & 7) & record["mask"]
        values: np.ndarray = codes.astype(np.float32)
        values *= record["step"]
        values += record["low"]
        values *= self.scale.take(places + record["scale"], mode="clip")[:, None]
        return values


class _RowByRow:
    """Reads the coefficients of many rows: all bytes of a row at once, and then the codes in few passes.

    A row becomes windows that begin every 16 bits and hold at least 24 bits of it, so every code lies within a window.
    The bits of a code stay where they are in their window. The step is that much smaller instead.

    Args:
        packed: the tensors of `CodedTables.packed`.
        blocks: of the plan.
    """

    def __init__(self, packed: Mapping[str, Tensor], blocks: Blocks) -> None:
        records = _records(packed, blocks)
        window, shift = np.divmod(records["offset"], 16)
        self.begin, self.width, self.scale_begin = (
            torch.from_numpy(records[name].copy()) for name in ("begin", "width", "scale")
        )
        self.window, self.mask = torch.from_numpy(window), torch.from_numpy(records["mask"] << shift.astype(np.int32))
        self.low = torch.from_numpy(records["low"].copy())
        self.step = torch.from_numpy(np.ldexp(records["step"], -shift))
        self.scale = torch.from_numpy(_scales(packed))
        length = 2 * (int(window.max()) + 2)  # bytes
        data = packed["table"].numpy()
        if len(data) < length:
            data = np.pad(data, (0, length - len(data)))
        self.rows = sliding_window_view(data, length)
        self.last_rows = sliding_window_view(np.pad(data[len(self.rows) :], (0, length)), length)

    def read(self, places: Tensor, block: Tensor) -> Tensor:
        """Places (u,) of rows and their blocks (u,) -> coefficients (u, K) float32."""
        bit = self.begin.index_select(0, block) + places * self.width.index_select(0, block)
        codes = self._windows(bit).gather(1, self.window.index_select(0, block))
        codes &= self.mask.index_select(0, block)
        values = self.low.index_select(0, block).addcmul_(self.step.index_select(0, block), codes.float())
        scale = (places + self.scale_begin.index_select(0, block)).clamp_(max=len(self.scale) - 1)
        return values.mul_(self.scale.index_select(0, scale)[:, None])

    def _windows(self, bit: Tensor) -> Tensor:
        """First bits (u,) of rows -> windows (u, n) int32."""
        byte, inside = (bit >> 3).numpy(), len(self.rows)
        rows = self.rows[np.minimum(byte, inside - 1)]
        late = np.flatnonzero(byte >= inside)  # whose bytes would reach past the end of the string
        rows[late] = self.last_rows[byte[late] - inside]
        halves = torch.from_numpy(rows).view(torch.uint16).int()
        windows = halves[:, 1:] << 16
        windows |= halves[:, :-1]
        windows >>= (bit & 7).int()[:, None]
        return windows
