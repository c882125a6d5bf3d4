"""Coded tables as they are served: the codes stay a string of bits in memory, and only looked-up rows are decoded.

A code is a run of up to 8 bits anywhere in the string, so it lies within two bytes. A row of codes becomes a row of
coefficients with the low ends and steps of its block, and then a vector with the decoder and the mean of its field.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

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
        eye = torch.eye(width) * ~blocks.centred[:, None, None]  # fields that are coded by rows have no decoder
        self.decoder, self.mean = eye, torch.zeros(len(schema), width)
        self.decoder[blocks.decoded], self.mean[blocks.centred] = packed["decoder"].float(), packed["mean"].float()
        self.few, self.many = _NumpyReader(packed, blocks), _TorchReader(packed, blocks)
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
        coefficients = self.few.read(places, self.ends.searchsorted(places, "right"))
        decoder, mean = self.decoder.numpy()[self.slot_fields], self.mean.numpy()[self.slot_fields, None]
        vectors = coefficients.reshape(*ids.shape, 1, -1) @ decoder + mean
        rows = occ.averaged(torch.from_numpy(vectors.reshape(len(places), -1)))
        if self.first_order:
            occ = replace(occ, first_order=rows[..., self.dim].sum(1))
        return occ, Few(rows[..., : self.dim], self.folds)

    def _many(self, ids: Tensor, occ: Direct) -> tuple[Direct, Vectors]:
        """Every distinct row is decoded once. Distinct rows are sorted, so those of a block or field are contiguous."""
        places = torch.where(ids == UNKNOWN, self.many_last, ids + self.many_first)
        distinct, inverse = torch.unique(places, return_inverse=True)
        ends = torch.searchsorted(distinct, self.block_ends)
        block = field_of(ends, len(distinct))
        field_ends = torch.searchsorted(distinct, self.field_ends, out_int32=True)
        field = field_of(field_ends, len(distinct))
        coefficients = self.many.read(distinct, block)
        vectors = grouped_matmul(coefficients, self.decoder, field_ends) + self.mean.index_select(0, field)
        repeated = Repeated(vectors[:, : self.dim].contiguous(), field_ends, inverse.flatten(), occ, self.folds)
        if self.first_order:
            occ = replace(occ, first_order=repeated.summed(vectors[:, self.dim :])[:, 0])
        return occ, repeated


class _Reader(ABC):
    """Reads the coefficients of rows from the string of codes. K is the number of components.

    The formula is the same for numpy arrays and for tensors. A call of numpy takes a third of the time of one of torch,
    which decides for a few rows; torch uses all cores.

    Args:
        packed: the tensors of `CodedTables.packed`.
        blocks: of the plan.
    """

    def __init__(self, packed: Mapping[str, Tensor], blocks: Blocks) -> None:
        self.data = self.array(packed["table"].numpy())
        self.scale = self.array(np.append(packed["scale"].float().numpy(), np.float32(1)))  # 1 for all other rows
        self.last = len(self.scale) - 1
        self.eight = self.array(np.array([8], np.int32))  # an array, so that a shifted byte becomes an int32

    @staticmethod
    @abstractmethod
    def array(values: np.ndarray) -> Any:
        """The values in the type of the library."""

    @staticmethod
    @abstractmethod
    def take(values: Any, index: Any) -> Any:
        """Elements of a flat array, in the shape of the index."""

    @staticmethod
    @abstractmethod
    def least(values: Any, most: int) -> Any:
        """The values, or ``most`` where they are larger."""

    @abstractmethod
    def of(self, block: Any) -> Mapping[str, Any]:
        """The fields of `_records` for blocks (u,)."""

    @staticmethod
    @abstractmethod
    def scaled(codes: Any, low: Any, step: Any) -> Any:
        """low + step * codes in float32."""

    def read(self, places: Any, block: Any) -> Any:
        """Places (u,) of rows and their blocks (u,) -> coefficients (u, K) float32."""
        of_block = self.of(block)
        bits = (of_block["begin"] + places * of_block["width"])[:, None] + of_block["offset"]
        byte = bits >> 3
        window = self.take(self.data, byte) | self.take(self.data, byte + 1) << self.eight
        codes = window >> (bits & 7) & of_block["mask"]
        values = self.scaled(codes, of_block["low"], of_block["step"])
        scale = self.take(self.scale, self.least(places + of_block["scale"], self.last))
        return values * scale[:, None]


def _records(packed: Mapping[str, Tensor], blocks: Blocks, index: type) -> np.ndarray:
    """What reading needs to know of each block.

    Args:
        packed, blocks: of the tables.
        index: int32 or int64, large enough for the bits of the string.

    Returns:
        (blocks,) records: ``begin``, the first bit of place 0 if it were in the block; ``width``, bits of a row;
        ``scale``, which is added to a place for the number of its scale; and of the K components ``offset``, first bits
        within a row, ``mask``, ones as wide as the codes, ``low`` and ``step``.
    """
    layout, begins, alone = blocks.layout, blocks.begins.numpy(), blocks.by_rows
    levels = Levels.stored(blocks, packed["quantiser"], packed["scale"])
    low, step = levels.low.float(), levels.step.float()
    low[alone], step[alone] = 1 - 2.0 ** (blocks.bits[alone] - 1), 1.0  # times the scale of the row
    fields = {
        "begin": layout.begins - begins * layout.widths,
        "width": layout.widths,
        "scale": np.where(alone, blocks.scales.numpy() - begins, blocks.num_scales),
        "offset": layout.offsets,
        "mask": (1 << layout.bits) - 1,
        "low": low.numpy(),
        "step": step.numpy(),
    }
    types = {"mask": np.int32, "low": np.float32, "step": np.float32}
    described = [(name, types.get(name, index), values.shape[1:]) for name, values in fields.items()]
    records = np.empty(len(begins), described)
    for name, values in fields.items():
        records[name] = values
    return records


class _NumpyReader(_Reader):
    def __init__(self, packed: Mapping[str, Tensor], blocks: Blocks) -> None:
        super().__init__(packed, blocks)
        self.records = _records(packed, blocks, np.int64)

    @staticmethod
    def least(values: Any, most: int) -> Any:
        return np.minimum(values, most)

    @staticmethod
    def array(values: np.ndarray) -> Any:
        return values

    @staticmethod
    def take(values: Any, index: Any) -> Any:
        return values.take(index)

    def of(self, block: Any) -> Mapping[str, Any]:
        return self.records.take(block)

    @staticmethod
    def scaled(codes: Any, low: Any, step: Any) -> Any:
        return low + step * codes.astype(np.float32)


class _TorchReader(_Reader):
    def __init__(self, packed: Mapping[str, Tensor], blocks: Blocks) -> None:
        super().__init__(packed, blocks)
        records = _records(packed, blocks, np.int32 if blocks.layout.size < 2**28 else np.int64)
        names = records.dtype.names or ()
        self.fields = {name: torch.from_numpy(np.ascontiguousarray(records[name])) for name in names}

    @staticmethod
    def least(values: Any, most: int) -> Any:
        return values.clamp_max(most)

    @staticmethod
    def array(values: np.ndarray) -> Any:
        return torch.from_numpy(values)

    @staticmethod
    def take(values: Any, index: Any) -> Any:
        return values.index_select(0, index.flatten()).view(index.shape)

    def of(self, block: Any) -> Mapping[str, Any]:
        return {name: values.index_select(0, block) for name, values in self.fields.items()}

    @staticmethod
    def scaled(codes: Any, low: Any, step: Any) -> Any:
        return torch.addcmul(low, step, codes)
