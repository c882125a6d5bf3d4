"""Uniform scalar quantisers, and the loss that each number of bits would cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.coding.transform import as_shares

BITS = (0, 1, 2, 3, 4, 5, 6, 8)  # of a coefficient
LEVEL = 16  # bits of a stored float16: low end, step, scale, mean, a number of the decoder
SHARES = (0.5, 0.8, 0.95)  # of all lookups of a field, at which its rows are cut into blocks
# The best step for a Gaussian of variance 1 (Max 1960, "Quantizing for minimum distortion", table II).
GAUSSIAN_STEP = {1: 1.596, 2: 0.9957, 3: 0.586, 4: 0.3352, 5: 0.1881, 6: 0.1041, 8: 0.0308}
MULTIPLES = tuple(float(x) for x in np.geomspace(0.4, 2.0, 11))  # of that step, which are tried
SAMPLE = 20_000  # rows on which steps are tried
TOGETHER = 16_384  # rows whose errors are computed together; their numbers fit a cache


def blocks(weights: Tensor, shares: Sequence[float] = SHARES) -> np.ndarray:
    """(J + 1,) int64, ascending from 0 to V: the rows at which blocks begin, and V.

    Args:
        weights: (V,) of the rows. The most frequent rows come first if the blocks are to differ in frequency.
        shares: of the sum of the weights at which blocks end.
    """
    ends = torch.tensor(list(shares), dtype=torch.float64)
    cuts = torch.searchsorted(as_shares(weights.double()).cumsum(0), ends) + 1
    return np.array(sorted({0, *cuts.clamp(max=len(weights)).tolist(), len(weights)}))


@dataclass(frozen=True)
class Quantisers:
    """Of the K components of one block, one for each number of bits in `BITS`: levels are ``low + code * step``.

    Args:
        low, step: (K, N) float16; 0 for 0 bits.
        errors: (K, N) float64, the sum over the rows of w (c - ĉ)^2.
    """

    low: Tensor
    step: Tensor
    errors: Tensor


def fit(coefficients: Tensor, weights: Tensor) -> Quantisers:
    """The quantisers of a block with the smallest error among some steps.

    Args:
        coefficients: (n, K).
        weights: (n,) of the rows.
    """
    tried = _Tried(coefficients, weights)
    lows, steps, errors = [], [], []
    for bits in BITS:
        low, step = tried.best(bits)
        lows.append(low)
        steps.append(step)
        errors.append(torch.zeros(len(low), dtype=torch.float64))
        for part, of_part in zip(coefficients.split(TOGETHER), weights.split(TOGETHER), strict=True):
            off = dequantised(quantised(part, low, step, bits), low, step).sub_(part)
            errors[-1] += of_part.double() @ off.square_().double()
    return Quantisers(torch.stack(lows, 1), torch.stack(steps, 1), torch.stack(errors, 1))


def fit_chosen(coefficients: Tensor, weights: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
    """The low ends and steps (K,) float16 of `fit` for chosen numbers of bits.

    Args:
        coefficients: (n, K).
        weights: (n,) of the rows.
        bits: (K,) of each component.
    """
    low, step = torch.zeros(2, len(bits), dtype=torch.float16).unbind()
    for number in bits.unique().tolist():
        columns = (bits == number).nonzero()[:, 0]
        low[columns], step[columns] = _Tried(coefficients[:, columns], weights).best(number)
    return low, step


class _Tried:
    """Some rows of a block, on which steps are tried."""

    def __init__(self, coefficients: Tensor, weights: Tensor) -> None:
        shares = as_shares(weights)
        self.mean = shares @ coefficients
        self.sd = (shares @ (coefficients - self.mean).square_()).sqrt()
        every = -(-len(coefficients) // SAMPLE)
        self.sample, self.shares = coefficients[::every], as_shares(shares[::every])

    def best(self, bits: int) -> tuple[Tensor, Tensor]:
        """Low end and step (K,) float16 with the smallest weighted squared error."""
        low = step = torch.zeros_like(self.mean).half()
        return _best(self.sample, self.shares, self.mean, self.sd, bits) if bits else (low, step)


def _best(values: Tensor, shares: Tensor, mean: Tensor, sd: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Low end and step (K,) float16 with the smallest weighted squared error."""
    least = torch.full_like(mean, torch.inf)
    low, step = mean.half(), torch.zeros_like(mean).half()
    for multiple in MULTIPLES:
        tried = (multiple * GAUSSIAN_STEP[bits] * sd).half()
        bottom = (mean - tried.float() * (2**bits - 1) / 2).half()
        error = shares @ (values - dequantised(quantised(values, bottom, tried, bits), bottom, tried)).square_()
        better = error < least
        least = torch.where(better, error, least)
        low, step = torch.where(better, bottom, low), torch.where(better, tried, step)
    return low, step


def quantised(values: Tensor, low: Tensor, step: Tensor, bits: int | Tensor) -> Tensor:
    """Nearest codes, 0 to 2**bits - 1, as float32: (n, K); ``low``, ``step`` and ``bits`` broadcast to it."""
    codes = ((values - low.float()) / torch.where(step > 0, step.float(), torch.inf)).round_()
    top = torch.as_tensor(2**bits - 1, dtype=codes.dtype, device=codes.device)
    return codes.clamp_(min=0).minimum(top)


def dequantised(codes: Tensor, low: Tensor, step: Tensor) -> Tensor:
    """Codes (n, K) -> coefficients (n, K) float32."""
    return torch.addcmul(low.float(), codes, step.float())


def row_scales(table: Tensor, bits: int) -> Tensor:
    """(V,) float16 scales with which rows fit codes of -top to top, top = 2**(bits - 1) - 1; at least 2 bits."""
    return (table.abs().amax(1) / (2 ** (bits - 1) - 1)).half()


def by_rows(scale: Tensor, bits: int | Tensor) -> tuple[Tensor, Tensor]:
    """Low end and step of rows that are coded one by one.

    Args:
        scale: (u,) of the rows.
        bits: of all numbers, or (u, D).

    Returns:
        Both (u, 1), or (u, D).
    """
    top = 2 ** (bits - 1) - 1
    step = scale.float()[:, None] * torch.ones_like(torch.as_tensor(top, dtype=torch.float32, device=scale.device))
    return -top * step, step
