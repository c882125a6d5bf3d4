"""Codes of many rows in one string of bits; every block of rows has its own number of bits for each component.

A row of a block is a run of bits, component after component, and rows and blocks follow each other without padding. So
the string takes exactly as many bits as the codes, and any row can be read by itself.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

CHUNK = 8192  # rows that are packed together
SPARE = 2  # bytes at the end, so that two bytes can be read at every place, also at that of a code of 0 bits


class Layout:
    """Where each code is.

    Args:
        rows: (S,) number of rows of each block.
        bits: (S, K) of each component, 0 to 8.

    Attributes:
        begins: (S,) int64 first bit of each block.
        widths: (S,) int64 bits of a row.
        offsets: (S, K) int64 first bit of each component within a row.
        size: bytes of the string.
    """

    def __init__(self, rows: np.ndarray, bits: np.ndarray) -> None:
        self.rows, self.bits = rows.astype(np.int64), bits.astype(np.int64)
        self.widths = self.bits.sum(1)
        self.offsets = np.cumsum(self.bits, 1) - self.bits
        sizes = self.rows * self.widths
        self.begins = np.cumsum(sizes) - sizes
        self.size = -(-int(sizes.sum()) // 8) + SPARE


def pack(layout: Layout, codes: Iterable[Tensor]) -> Tensor:
    """(bytes,) uint8: the string of the codes, one (n_s, K) tensor of whole numbers for each block."""
    runs: list[np.ndarray] = []
    left = np.zeros(0, np.uint8)  # bits that do not fill a byte yet
    for bits, of_block in zip(layout.bits, codes, strict=True):
        columns = np.repeat(np.arange(len(bits)), bits)
        shifts = np.arange(len(columns)) - np.repeat(np.cumsum(bits) - bits, bits)
        for chunk in of_block.split(CHUNK) if len(columns) else ():
            numbers = chunk.to(torch.int16).cpu().numpy()
            string = np.concatenate([left, ((numbers[:, columns] >> shifts) & 1).astype(np.uint8).ravel()])
            whole = len(string) // 8 * 8
            runs.append(np.packbits(string[:whole], bitorder="little"))
            left = string[whole:]
    runs.append(np.packbits(left, bitorder="little"))
    data = np.concatenate(runs)
    return torch.from_numpy(np.pad(data, (0, layout.size - len(data))))


def read(data: Tensor, begins: Tensor, bits: Tensor) -> Tensor:
    """Codes at any places of a string.

    Args:
        data: (bytes,) uint8.
        begins: first bit of each code, any shape.
        bits: of each code, 0 to 8, the same shape.

    Returns:
        int32, 0 for a code of 0 bits.
    """
    place = begins >> 3
    window = data[place].to(torch.int32) | data[place + 1].to(torch.int32) << 8
    return window >> (begins & 7).to(torch.int32) & (1 << bits) - 1
