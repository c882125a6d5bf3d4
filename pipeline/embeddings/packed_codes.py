"""Codes of a few bits each, packed into one string of bits with random access to rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

MOST_CENTROIDS = 2**16


def bits(centroids: int) -> int:
    """Bits of a code for this number of centroids."""
    return (centroids - 1).bit_length()


class PackedCodes(nn.Module):
    """The codes of many rows, packed into one string of bits with random access to rows.

    Rows are divided into segments. Each segment has its own number of centroids, and so its own width of code, and
    begins at a whole byte.

    Args:
        rows: number of rows of each segment.
        groups: G, codes per row.
        centroids: K of each segment, 2 to `MOST_CENTROIDS`, not necessarily a power of two.

    Raises:
        ValueError: for another number of centroids.
    """

    def __init__(self, rows: Sequence[int], groups: int, centroids: Sequence[int]) -> None:
        super().__init__()
        wrong = [k for k in centroids if not 2 <= k <= MOST_CENTROIDS]
        if wrong:
            raise ValueError(f"centroids of a code must be 2 to {MOST_CENTROIDS}, got {wrong[0]}")
        numbers, widths = np.array(rows, np.int64), np.array([bits(k) for k in centroids], np.int64)
        sizes = -(-numbers * widths * groups // 8)
        self.groups = groups
        self.numbers: list[int] = numbers.tolist()
        self.begins: list[int] = (np.cumsum(sizes) - sizes).tolist()  # bytes
        self.bits: list[int] = widths.tolist()
        self.firsts: list[int] = (np.cumsum(numbers) - numbers).tolist()
        self.register_buffer("data", torch.zeros(int(sizes.sum()), dtype=torch.uint8))
        self.register_buffer("layout", torch.tensor([self.begins, self.bits, self.firsts]), persistent=False)

    data: Tensor
    layout: Tensor

    def write(self, segment: int, start: int, codes: Tensor) -> None:
        """Set the codes (n, G) of n rows of a segment, from its row ``start`` on, which must be a multiple of 8."""
        width = self.bits[segment]
        split = codes.reshape(-1, 1) >> torch.arange(width, device=codes.device) & 1
        string = nn.functional.pad(split.flatten(), (0, -split.numel() % 8)).view(-1, 8)
        packed = (string << torch.arange(8, device=codes.device)).sum(1).to(torch.uint8)
        begin = self.begins[segment] + start * self.groups * width // 8
        self.data[begin : begin + len(packed)] = packed

    def read(self, data: Tensor, rows: Tensor, segments: Tensor) -> Tensor:
        """(u, G) codes of rows, read from ``data``.

        Args:
            data: the string of bits, as bytes.
            rows: (u,) row numbers, counted over all segments.
            segments: (u,) segment of each row.
        """
        begin, width, first = self.layout[:, segments]
        order = torch.arange(self.groups, device=rows.device)
        offsets = 8 * begin[:, None] + ((rows - first)[:, None] * self.groups + order) * width[:, None]
        place, window = offsets >> 3, torch.zeros_like(offsets)
        for i in range(-(-(7 + max(self.bits)) // 8)):  # a code may begin at the last bit of a byte
            window |= data[(place + i).clamp_(max=len(data) - 1)].long() << (8 * i)
        return window >> (offsets & 7) & ((1 << width) - 1)[:, None]
