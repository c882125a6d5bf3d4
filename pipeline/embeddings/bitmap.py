"""Bits packed into words, with a fast count of the one bits before any position."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

WORD = 64  # bits
BLOCK_WORDS = 8  # words of a block; each block stores the number of one bits before it
Packed = Mapping[str, Tensor]
Form = dict[str, tuple[int, torch.dtype]]  # length and type of each packed tensor


class Bitmap:
    """n bits, and the number of one bits before every block of 512: 1.06 stored bits per bit (Jacobson 1989).

    Args:
        words: (ceil(n / 64),) int64; bit i is bit i % 64 of word i // 64.
        before: (ceil(n / 512),) int32, one bits before each block.
    """

    def __init__(self, words: Tensor, before: Tensor) -> None:
        self.words, self.before = words, before

    @staticmethod
    def form(bits: int) -> Form:
        """Length and type of each packed tensor, by name, for a number of bits."""
        words = -(-bits // WORD)
        return {"bits": (words, torch.int64), "before": (-(-words // BLOCK_WORDS), torch.int32)}

    @classmethod
    def of(cls, bits: np.ndarray) -> Bitmap:
        """Pack bits (n,) bool."""
        size = cls.form(len(bits))
        octets = np.zeros(size["bits"][0] * WORD // 8, np.uint8)
        packed = np.packbits(bits, bitorder="little")
        octets[: len(packed)] = packed
        block = WORD * BLOCK_WORDS
        ones = np.add.reduceat(bits, np.arange(0, len(bits), block), dtype=np.int32)
        return cls(
            torch.from_numpy(octets.view("<i8").astype(np.int64)), torch.from_numpy(np.cumsum(ones) - ones).int()
        )

    def at(self, places: Tensor) -> Tensor:
        """Whether the bit at each place is set: int64 of any shape -> bool."""
        words = self.words.index_select(0, (places // WORD).flatten()).view(places.shape)
        return (words >> (places % WORD)) & 1 == 1

    def rank(self, places: Tensor) -> Tensor:
        """Number of one bits before each place: (U,) int64 -> (U,) int64."""
        word, block = places // WORD, places // (WORD * BLOCK_WORDS)
        window = block[:, None] * BLOCK_WORDS + torch.arange(BLOCK_WORDS, device=places.device)
        words = self.words[window.clamp(max=len(self.words) - 1)]
        below = (torch.ones_like(places) << (places % WORD)) - 1  # the bits before it in its own word
        words = torch.where(
            window < word[:, None], words, torch.where(window == word[:, None], words & below[:, None], 0)
        )
        return self.before.index_select(0, block) + _ones(words).sum(1)


def _ones(words: Tensor) -> Tensor:
    """Number of one bits in each int64. The shifts copy the sign bit, and the masks remove the copies."""
    words = words - ((words >> 1) & 0x5555555555555555)
    words = (words & 0x3333333333333333) + ((words >> 2) & 0x3333333333333333)
    words = (words + (words >> 4)) & 0x0F0F0F0F0F0F0F0F
    return (words * 0x0101010101010101) >> 56
