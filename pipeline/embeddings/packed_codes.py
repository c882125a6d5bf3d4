"""Codes of few bits as one string of bits, of which any row can be read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

MOST_CENTROIDS = 2**16


def bits(centroids: int) -> int:
    """Bits of a code that names one of so many centroids."""
    return (centroids - 1).bit_length()


class PackedCodes(nn.Module):
    """Codes of many rows as one string of bits, of which any row can be read.

    The rows come in segments, each with a number of centroids of its own and hence with codes of its own width. A
    segment begins at a whole byte.

    Args:
        rows: number of rows of each segment.
        groups: G, codes of a row.
        centroids: K of each segment, 2 to `MOST_CENTROIDS`; no need to be a power of two.
    """

    def __init__(self, rows: Sequence[int], groups: int, centroids: Sequence[int]) -> None:
        super().__init__()
        wrong = [k for k in centroids if not 2 <= k <= MOST_CENTROIDS]
        if wrong:
            raise ValueError(f"codes are of 2 to {MOST_CENTROIDS} centroids, however: {wrong[0]}")
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
        """Set codes (n, G) of a segment's rows from ``start``, a multiple of 8, on."""
        width = self.bits[segment]
        split = codes.reshape(-1, 1) >> torch.arange(width, device=codes.device) & 1
        string = nn.functional.pad(split.flatten(), (0, -split.numel() % 8)).view(-1, 8)
        packed = (string << torch.arange(8, device=codes.device)).sum(1).to(torch.uint8)
        begin = self.begins[segment] + start * self.groups * width // 8
        self.data[begin : begin + len(packed)] = packed

    def read(self, data: Tensor, rows: Tensor, segments: Tensor) -> Tensor:
        """(u,) rows and their segments -> (u, G) codes, out of ``data``."""
        begin, width, first = self.layout[:, segments]
        order = torch.arange(self.groups, device=rows.device)
        offsets = 8 * begin[:, None] + ((rows - first)[:, None] * self.groups + order) * width[:, None]
        place, window = offsets >> 3, torch.zeros_like(offsets)
        for i in range(-(-(7 + max(self.bits)) // 8)):  # a code may begin at a byte's last bit
            window |= data[(place + i).clamp_(max=len(data) - 1)].long() << (8 * i)
        return window >> (offsets & 7) & ((1 << width) - 1)[:, None]
