"""The loss that each way to code a field's table would cost, predicted from the trained model."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.coding.quantiser import BITS, SHARES, TOGETHER, blocks, by_rows, dequantised, fit, quantised, row_scales
from pipeline.coding.transform import transform


@dataclass(frozen=True)
class Prediction:
    """Predicted rises of the mean loss when a table is coded.

    Args:
        cuts: (J + 1,) int64 rows at which the blocks begin, and V; see `pipeline.coding.quantiser.blocks`.
        components: (J, K, N) for each block, component, and number of bits in `BITS`.
        rows: (N,) if rows are coded one by one, with a scale each; inf for fewer than 2 bits.
        dim: D, numbers of a row.
        extra: bits that are stored besides, by components and by rows.
    """

    cuts: np.ndarray
    components: np.ndarray
    rows: np.ndarray
    dim: int
    extra: tuple[int, int] = (0, 0)

    def loss(self, bits: np.ndarray, by_rows: bool) -> float:
        """The predicted loss of a coding.

        Args:
            bits: (J, K) of each component in each block; by rows the first number is that of all.
            by_rows: whether rows are coded one by one.
        """
        places = np.searchsorted(BITS, bits)
        if by_rows:
            return float(self.rows[places[0, 0]])
        return float(np.take_along_axis(self.components, places[..., None], 2).sum())


def predict(table: Tensor, weights: Tensor, metric: Tensor, shares: Sequence[float] = SHARES) -> Prediction:
    """The prediction for a table.

    Args:
        table, weights, metric: see `pipeline.coding.transform.transform`.
        shares: see `pipeline.coding.quantiser.blocks`.
    """
    cuts = blocks(weights, shares)
    coordinates = transform(table, weights, metric)
    ranges = itertools.pairwise(cuts.tolist())
    errors = [fit(coordinates.coefficients[a:b], weights[a:b]).errors for a, b in ranges]
    components = 0.5 * torch.stack(errors) * coordinates.power[:, None]
    return Prediction(cuts, components.numpy(), _of_rows(table, weights, metric), table.shape[1])


def _of_rows(table: Tensor, weights: Tensor, metric: Tensor) -> np.ndarray:
    losses = np.full(len(BITS), np.inf)
    for n, bits in enumerate(BITS):
        if bits > 1:
            moment = torch.zeros_like(metric)
            for part, of_part in zip(table.split(TOGETHER), weights.split(TOGETHER), strict=True):
                low, step = by_rows(row_scales(part, bits), bits)
                off = dequantised(quantised(part, low, step, bits), low, step).sub_(part)
                moment += (off * of_part[:, None]).T.double() @ off.double()
            losses[n] = 0.5 * float((moment * metric).sum())
    return losses
