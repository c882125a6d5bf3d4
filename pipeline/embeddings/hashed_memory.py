"""A memory of numbers that values share, and the hash that chooses a value's numbers: for hashing, ROBE and LMA."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from pipeline.embeddings.table import INIT_SD

MAX_CELLS = 2**31  # a position is the upper half of the product of two numbers of 31 bits


def mixed(numbers: Tensor) -> Tensor:
    """int64 -> int64, one to one; every output bit depends on every input bit: splitmix64 (Steele, Lea, Flood 2014).

    Products wrap around. A right shift of int64 copies the sign bit, and the masks remove the copies.
    """
    numbers = numbers + -0x61C8864680B583EB
    numbers = (numbers ^ ((numbers >> 30) & (2**34 - 1))) * -0x40A7B892E31B1A47
    numbers = (numbers ^ ((numbers >> 27) & (2**37 - 1))) * -0x6B2FB644ECCEEE15
    return numbers ^ ((numbers >> 31) & (2**33 - 1))


def constants(seed: int, stream: int, number: int) -> Tensor:
    """(number,) pseudorandom int64, the same on every machine, so that a saved model finds its cells."""
    start = mixed(mixed(torch.tensor([seed], device="cpu")) + stream)
    return mixed(start + torch.arange(number, device="cpu"))


class SlotHash(nn.Module):
    """Keys and slots -> positions: multiply-shift with two constants of each slot (Dietzfelbinger et al. 1997).

    Args:
        slots: d.
        seed, stream: name the hash function; functions of different streams are independent.
    """

    def __init__(self, slots: int, seed: int, stream: int) -> None:
        super().__init__()
        self.register_buffer("factors", constants(seed, 2 * stream, slots) | 1, persistent=False)
        self.register_buffer("shifts", constants(seed, 2 * stream + 1, slots), persistent=False)

    factors: Tensor
    shifts: Tensor

    def _hashed(self, keys: Tensor) -> Tensor:
        return torch.addcmul(self.shifts, keys, self.factors)

    def forward(self, keys: Tensor, size: int | Tensor) -> Tensor:
        """Keys (U, 1) or (U, d), results of `mixed` -> (U, d) int64 positions from 0 to ``size`` - 1.

        ``size`` is one number, or one for each key, (U, 1).
        """
        upper = (self._hashed(keys) >> 33).bitwise_and_(2**31 - 1)
        return upper.mul_(size).bitwise_right_shift_(31)

    def signs(self, keys: Tensor, dtype: torch.dtype) -> Tensor:
        """Keys as in `forward` -> (U, d) of 1 and -1, from a bit that the positions do not use."""
        return ((self._hashed(keys) >> 31) & 2).to(dtype).sub_(1).neg_()


class _TakeCells(torch.autograd.Function):
    """memory[cells] for memory (m,) and cells (U, d); the gradient is dense."""

    @staticmethod
    def forward(ctx: FunctionCtx, memory: Tensor, cells: Tensor) -> Tensor:
        ctx.save_for_backward(cells)  # type: ignore[attr-defined]
        ctx.size = len(memory)  # type: ignore[attr-defined]
        return memory.index_select(0, cells.flatten()).view(cells.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (cells,) = ctx.saved_tensors
        dense = grad.new_zeros(ctx.size)
        return dense.index_add_(0, cells.flatten(), grad.flatten()), None


class Memory(nn.Module):
    """m numbers, read in any order.

    The gradient is dense, and dense Adam updates all numbers. The alternative is to find the distinct numbers of a
    batch and to update only these with `RowAdam`. On one thread, with batches of 2,000 rows of 39 fields, the dense way
    takes a quarter to a sixth of that time for a memory of 3.5 M numbers, a sixth of which a batch reads; 1.2 times as
    long for 20 M numbers; and 1.6 times as long for 40 M numbers.

    Args:
        size: m.

    Raises:
        ValueError: if m is not from 1 to 2**31 - 1.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        if not 1 <= size < MAX_CELLS:
            raise ValueError(f"a memory must hold 1 to {MAX_CELLS - 1:,} numbers, got {size:,}; lower the budget")
        self.weight = nn.Parameter(torch.empty(size))
        nn.init.normal_(self.weight, std=INIT_SD)

    def forward(self, cells: Tensor) -> Tensor:
        """(U, d) positions -> (U, d) numbers."""
        return _TakeCells.apply(self.weight, cells)  # type: ignore[no-any-return]
