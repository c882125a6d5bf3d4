"""Hashed rows of several fields in one table, with a range of its own for each field."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.data.schema import Schema
from pipeline.embeddings.hashed_memory import SlotHash, constants, mixed


class FieldHash(nn.Module):
    """Rows of a table of all fields -> rows of a hashed table.

    Args:
        schema: F fields.
        sizes: (F,) number of hashed rows of each field; 0 for a field that has none and is not asked for.
        seed: of the hash.
    """

    def __init__(self, schema: Schema, sizes: np.ndarray, seed: int) -> None:
        super().__init__()
        self.hash = SlotHash(1, seed, 0)
        self.register_buffer("salt", constants(seed, 2, 1), persistent=False)
        about = np.stack([sizes, np.cumsum(sizes) - sizes])
        self.register_buffer("about", torch.tensor(about.astype(np.int64)), persistent=False)
        self.register_buffer("firsts", torch.tensor(schema.first_rows), persistent=False)

    salt: Tensor
    about: Tensor
    firsts: Tensor

    def fields(self, rows: Tensor) -> Tensor:
        """(u,) field of each row (u,) of the table of all fields."""
        return torch.bucketize(rows, self.firsts, right=True) - 1

    def forward(self, rows: Tensor) -> Tensor:
        """(u,) rows of the table of all fields -> (u,) rows of the hashed table."""
        sizes, begins = self.about[:, self.fields(rows)]
        slots: Tensor = self.hash(mixed(rows + self.salt)[:, None], sizes[:, None])[:, 0]
        return slots + begins


def hashed_sizes(cardinalities: np.ndarray, total: float) -> np.ndarray:
    """(F,) int64: about ``total`` hashed rows, in proportion to the cardinalities (F,).

    A field has at least one hashed row, or none if its cardinality is 0.
    """
    share = total / max(1, int(cardinalities.sum()))
    return np.minimum(np.ceil(share * cardinalities).clip(min=1), cardinalities).astype(np.int64)
