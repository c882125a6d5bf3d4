"""Coded tables in memory: blocks of rows, the levels of their coefficients, and the string of their codes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.coding.bitstring import Layout, read
from pipeline.coding.choice import Plan
from pipeline.coding.quantiser import by_rows, dequantised, quantised


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
