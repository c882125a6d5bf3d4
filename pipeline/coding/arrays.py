"""Predictions and plans of fields as flat arrays, for the findings of a search, allocations and served models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.coding.bitstring import Layout, pack, read
from pipeline.coding.choice import CODE, Plan
from pipeline.coding.prediction import Prediction
from pipeline.coding.quantiser import BITS


def of_predictions(predictions: Sequence[Prediction]) -> dict[str, np.ndarray]:
    """The arrays of the predictions of F fields."""
    return {
        "blocks": np.array([len(one.cuts) - 1 for one in predictions], np.uint8),
        "cuts": np.concatenate([one.cuts[1:-1] for one in predictions]).astype(np.int32),
        "losses": np.concatenate([one.components.ravel() for one in predictions]),
        "row_losses": np.stack([one.rows for one in predictions]),
        "width": np.array(predictions[0].dim, np.int32),
    }


def predictions(arrays: Mapping[str, np.ndarray], numbers: Sequence[int]) -> list[Prediction]:
    """The predictions in arrays of `of_predictions`.

    Args:
        arrays: of F fields.
        numbers: of rows of each field.
    """
    found, begin, dim = [], 0, int(arrays["width"])
    for number, cuts, rows in zip(numbers, _cuts(arrays, numbers), arrays["row_losses"], strict=True):
        shape = (len(cuts) - 1, min(number, dim), len(BITS))
        losses = arrays["losses"][begin : begin + np.prod(shape)].reshape(shape)
        found.append(Prediction(cuts, losses, rows, dim))
        begin += losses.size
    return found


def of_plans(plans: Sequence[Plan]) -> dict[str, np.ndarray]:
    """The arrays of the plans of F fields.

    Returns:
        ``blocks`` (F,) uint8, 0 for a field that is coded by rows; ``cuts`` int32, the inner ones; ``bits`` uint8,
        positions in `BITS`, a single one for a field that is coded by rows.
    """
    bits = [plan.bits[:, :1] if plan.by_rows else plan.bits for plan in plans]
    return {
        "blocks": np.array([0 if plan.by_rows else len(plan.rows) for plan in plans], np.uint8),
        "cuts": np.concatenate([plan.cuts[1:-1] for plan in plans]).astype(np.int32),
        "bits": np.searchsorted(BITS, np.concatenate([of_field.ravel() for of_field in bits])).astype(np.uint8),
    }


def plans(arrays: Mapping[str, np.ndarray], numbers: Sequence[int], dim: int) -> list[Plan]:
    """The plans in arrays of `of_plans`; rows of ``dim`` numbers, see `predictions` for the other arguments."""
    found, begin = [], 0
    bits = np.array(BITS, np.uint8)[arrays["bits"]]
    for number, cuts, blocks in zip(numbers, _cuts(arrays, numbers), arrays["blocks"].tolist(), strict=True):
        shape = (blocks, min(number, dim)) if blocks else (1, 1)
        of_field = bits[begin : begin + np.prod(shape)].reshape(shape)
        found.append(Plan(cuts, of_field if blocks else np.repeat(of_field, dim, 1), not blocks))
        begin += of_field.size
    return found


def pack_bits(bits: np.ndarray) -> Tensor:
    """``bits`` in the arrays of `of_plans` as a string of `CODE` bits each."""
    return pack(Layout(np.array([len(bits)]), np.array([[CODE]])), [torch.from_numpy(bits)[:, None]])


def read_plans(blocks: np.ndarray, cuts: np.ndarray, bits: Tensor, numbers: Sequence[int], dim: int) -> list[Plan]:
    """The plans in arrays of `of_plans`, with ``bits`` packed by `pack_bits`; see `predictions` for the rest."""
    count = number_of_bits(blocks.tolist(), numbers, dim)
    read_bits = read(bits, torch.arange(count) * CODE, torch.full((count,), CODE)).numpy()
    return plans({"blocks": blocks, "cuts": cuts, "bits": read_bits}, numbers, dim)


def number_of_bits(blocks: Sequence[int], numbers: Sequence[int], dim: int) -> int:
    """The length of ``bits`` in the arrays of `of_plans`."""
    return sum(count * min(number, dim) or 1 for number, count in zip(numbers, blocks, strict=True))


def _cuts(arrays: Mapping[str, np.ndarray], numbers: Sequence[int]) -> list[np.ndarray]:
    found, begin = [], 0
    for number, blocks in zip(numbers, arrays["blocks"].tolist(), strict=True):
        inner = arrays["cuts"][begin : begin + max(blocks - 1, 0)].astype(np.int64)
        found.append(np.concatenate([[0], inner, [number]]))
        begin += len(inner)
    return found
