"""What a served model asks of its tables."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Self

from torch import Tensor

from pipeline.data.schema import Schema
from pipeline.embeddings.batch import Direct
from pipeline.models.factored import Vectors

FEW = 8  # rows of ids up to which the number of calls decides the time, and not the numbers that are read


class ServedTables(ABC):
    """The tables of the kept fields as they are served, on a CPU.

    Attributes:
        schema: F kept fields in S slots.
        dim: D, the width of the field vectors.
        first_order: whether they hold the first-order weights of the backbone, too.
    """

    schema: Schema
    dim: int
    first_order = False

    @abstractmethod
    def look_up(self, ids: Tensor, occ: Direct) -> tuple[Direct, Tensor | Vectors]:
        """The occurrences, with the sums of first-order weights if the tables hold them, and the vectors (B, F, D).

        Args:
            ids: (B, S) int32 of the kept slots, 0 or larger also where a bag is not full.
            occ: of these ids; its weights are 0 where a bag is not full.
        """

    @abstractmethod
    def packed(self) -> dict[str, Tensor]:
        """All tensors that are stored, for `pipeline.embeddings.cost.cost`."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """A JSON value from which `restored` rebuilds the tables, besides schema, D and the packed tensors."""

    @classmethod
    @abstractmethod
    def restored(cls, schema: Schema, dim: int, packed: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Self:
        """The tables again.

        Raises:
            ValueError: if the tensors do not fit.
        """
