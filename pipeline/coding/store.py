"""Coded tables in memory: blocks of rows, the levels of their coefficients, and the string of their codes."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.coding.bitstring import Layout, read
from pipeline.coding.choice import Plan
from pipeline.coding.quantiser import by_rows, dequantised, fit_chosen, quantised, row_scales
from pipeline.coding.transform import transform


class Blocks:
    """The blocks of all fields, one after the other. B is their number. The place of a row is its number when the
    fields follow each other in the order of coding.

    Attributes:
        bits: (B, D) of each component; 0 where a field has fewer components than D.
        begins: (B,) place of the first row.
        by_rows: (B,) whether the field of the block is coded by rows.
        scales: (B,) number of the scale of the first row; only of blocks coded by rows.
        layout: of the codes.
        num_scales: number of all scales.
        quantised: (B, D) whether low end and step are stored.
        decoded: (F, D) whether a row of the decoder is stored.
        centred: (F,) whether a mean is stored.
    """

    def __init__(self, plans: Sequence[Plan], dim: int) -> None:
        bits = np.concatenate([_wide(plan.bits, dim) for plan in plans]).astype(np.int64)
        rows = np.concatenate([plan.rows for plan in plans])
        alone = np.repeat([plan.by_rows for plan in plans], [len(plan.rows) for plan in plans])
        self.bits, self.by_rows = torch.from_numpy(bits), torch.from_numpy(alone)
        self.begins = torch.from_numpy(np.cumsum(rows) - rows)
        self.scales = torch.from_numpy(np.cumsum(rows * alone) - rows * alone)
        self.layout, self.num_scales = Layout(rows, bits), int((rows * alone).sum())
        self.quantised = (self.bits > 0) & ~self.by_rows[:, None]
        used = [_wide(plan.used[None] & (not plan.by_rows), dim)[0] for plan in plans]
        self.decoded = torch.from_numpy(np.stack(used))
        self.centred = torch.from_numpy(np.array([not plan.by_rows for plan in plans]))

    @property
    def lengths(self) -> dict[str, int]:
        """The length of each stored part: bytes of the string of codes, scales, quantisers, decoder rows and means."""
        return {
            "codes": self.layout.size,
            "scale": self.num_scales,
            "quantiser": int(self.quantised.sum()),
            "decoder": int(self.decoded.sum()),
            "mean": int(self.centred.sum()),
        }

    def check(self, parts: Mapping[str, Tensor]) -> None:
        """Check that stored parts, named as in `lengths`, have these lengths.

        Raises:
            ValueError: naming those that do not.
        """
        lengths = self.lengths
        wrong = {name: (len(parts[name]), length) for name, length in lengths.items() if len(parts[name]) != length}
        if wrong:
            raise ValueError(f"lengths of the parts of coded tables do not fit their plan (found, expected): {wrong}")

    def on(self, device: torch.device) -> Blocks:
        """The same blocks with their tensors on a device."""
        if self.bits.device == device:
            return self
        moved = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor):
                setattr(moved, name, value.to(device))
        return moved


def _wide(array: np.ndarray, dim: int) -> np.ndarray:
    return np.pad(array, ((0, 0), (0, dim - array.shape[1])))


@dataclass(frozen=True)
class Code:
    """A table coded by a plan, its coefficients not rounded yet.

    Args:
        coefficients: (V, K); by rows: the vectors themselves, (V, D).
        decoder: (K, D), 0 for components without bits; by rows: none, (0, D).
        mean: (D,); by rows: 0.
        low, step: (J, K) float16; by rows: 0.
        scale: (V,) float16; by components: none, (0,).
    """

    coefficients: Tensor
    decoder: Tensor
    mean: Tensor
    low: Tensor
    step: Tensor
    scale: Tensor


def encode(table: Tensor, weights: Tensor, metric: Tensor, plan: Plan) -> Code:
    """Code a table (V, D); see `pipeline.coding.transform.transform` for ``weights`` and ``metric``."""
    dim = table.shape[1]
    none, zeros = torch.zeros(0, dim), torch.zeros(plan.bits.shape, dtype=torch.float16)
    if plan.by_rows:
        return Code(table, none, torch.zeros(dim), zeros, zeros, row_scales(table, int(plan.bits[0, 0])))
    found = transform(table, weights, metric)
    low, step = zeros, zeros.clone()
    for j, (a, b) in enumerate(plan.ranges):
        low[j], step[j] = fit_chosen(found.coefficients[a:b], weights[a:b], torch.from_numpy(plan.bits[j]))
    decoder = found.decoder * torch.from_numpy(plan.used)[:, None]
    return Code(found.coefficients, decoder, found.mean, low, step, torch.zeros(0, dtype=torch.float16))


@dataclass(frozen=True)
class Levels:
    """The levels that coefficients may have.

    Args:
        blocks: of the fields.
        low, step: (B, D) float16.
        scale: (scales,) float16 of each row that is coded by itself.
    """

    blocks: Blocks
    low: Tensor
    step: Tensor
    scale: Tensor

    @classmethod
    def stored(cls, blocks: Blocks, quantiser: Tensor, scale: Tensor) -> Levels:
        """The levels whose low ends and steps (n, 2) are stored where `Blocks.quantised` says."""
        low, step = (torch.zeros(blocks.bits.shape, dtype=torch.float16) for _ in range(2))
        low[blocks.quantised], step[blocks.quantised] = quantiser.unbind(1)
        return cls(blocks, low, step, scale)

    def codes(self, coefficients: Tensor, block: int, first: int = 0) -> Tensor:
        """The codes (n, D) of coefficients (n, D) of a block, from the row ``first`` of the block on."""
        low, step = self.of_rows(block, first, len(coefficients))
        return quantised(coefficients, low, step, self.blocks.bits[block])

    def settled(self, coefficients: Tensor, block: int, first: int) -> Tensor:
        """The levels (n, D) nearest to coefficients (n, D) of a block, from the row ``first`` of the block on."""
        low, step = self.of_rows(block, first, len(coefficients))
        bits = self.blocks.bits[block]
        return torch.where(bits > 0, dequantised(quantised(coefficients, low, step, bits), low, step), 0)

    def of_rows(self, block: int, first: int, number: int) -> tuple[Tensor, Tensor]:
        """Low ends and steps of contiguous rows of a block; both broadcast to (number, D)."""
        if not bool(self.blocks.by_rows[block]):
            return self.low[block].float(), self.step[block].float()
        begin = int(self.blocks.scales[block]) + first
        return by_rows(self.scale[begin : begin + number], self.blocks.bits[block])

    def of(self, block: Tensor, within: Tensor) -> tuple[Tensor, Tensor]:
        """Low ends and steps (u, D) of rows, given their blocks (u,) and their numbers within these (u,)."""
        low, step = self.low[block].float(), self.step[block].float()
        alone = self.blocks.by_rows[block]
        if bool(alone.any()):
            scale = self.scale[self.blocks.scales[block[alone]] + within[alone]]
            low[alone], step[alone] = by_rows(scale, self.blocks.bits[block[alone]])
        return low, step

    def nearest(self, values: Tensor, block: Tensor, within: Tensor) -> Tensor:
        """The levels nearest to coefficients (u, D); 0 for 0 bits."""
        low, step = self.of(block, within)
        bits = self.blocks.bits[block]
        return torch.where(bits > 0, dequantised(quantised(values, low, step, bits), low, step), 0)

    def read(self, data: Tensor, block: Tensor, within: Tensor) -> Tensor:
        """The coefficients (u, D) of rows, from the string of all codes."""
        layout, bits = self.blocks.layout, self.blocks.bits[block]
        begins = torch.from_numpy(layout.begins)[block] + within * torch.from_numpy(layout.widths)[block]
        codes = read(data, begins[:, None] + torch.from_numpy(layout.offsets)[block], bits)
        low, step = self.of(block, within)
        return torch.where(bits > 0, dequantised(codes.float(), low, step), 0)
