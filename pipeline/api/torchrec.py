"""Tables of plain mixed dimensions, field by field, as TorchRec's ``EmbeddingBagConfig`` describes them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.api.tables import Tables
from pipeline.embeddings.mixed import is_plain
from pipeline.experiment.saved import read
from pipeline.models.model import first_order_of


@dataclass(frozen=True)
class FieldTable:
    """The table of one field.

    Args:
        config: arguments of ``EmbeddingBagConfig``: ``num_embeddings``, ``embedding_dim``, and the name of the field as
            ``name`` and in ``feature_names``. Set its ``pooling`` to ``PoolingType.MEAN``.
        weight: (rows, d), the weights of the table.
        projection: (d, D), which lifts a vector to the common width: ``x = e @ projection``; None if d is D.
        first_order: (rows,), the first-order weights of the values, which the backbone adds up; None if it has none.
    """

    config: dict[str, Any]
    weight: Tensor
    projection: Tensor | None
    first_order: Tensor | None = None


def field_tables(trained: Tables | str | Path, multiple: int = 1) -> list[FieldTable]:
    """Copies of the tables of the kept fields, in the order of the schema.

    Args:
        trained: tables of plain mixed dimensions, or the folder of a model with such tables that `retrain` wrote.
        multiple: every d is padded with zeros to a multiple of this number. FBGEMM's tables need 4.

    Raises:
        TypeError: if the method's tables are of another kind.
        ValueError: if ``multiple`` is below 1, or the folder does not hold a trained model.
        FileNotFoundError: if a file of the folder is missing.
    """
    if multiple < 1:
        raise ValueError(f"multiple must be at least 1, got {multiple}")
    model = trained.model if isinstance(trained, Tables) else read(Path(trained))[0]
    embedding, first_order = model.embedding, first_order_of(model.get_submodule("backbone"))
    if not is_plain(embedding):
        raise TypeError(f"only plain mixed dimensions are TorchRec's tables, got {type(embedding).__name__}")
    sums = [None] * len(model.kept)
    if first_order is not None and first_order.table is not None:
        sums = first_order.table.weight.detach()[:, 0].split(model.kept.cardinalities.tolist())
    return [
        _padded(name, weight, projection, weights, multiple)
        for name, (weight, projection), weights in zip(model.kept.names, embedding.of_fields(), sums, strict=True)
    ]


def _padded(
    name: str, weight: Tensor, projection: Tensor | None, first_order: Tensor | None, multiple: int
) -> FieldTable:
    rows, d = weight.shape
    missing = -d % multiple
    if missing and projection is None:
        projection = torch.eye(d, device=weight.device)
    config = {"num_embeddings": rows, "embedding_dim": d + missing, "name": name, "feature_names": [name]}
    return FieldTable(
        config,
        torch.nn.functional.pad(weight, (0, missing)).clone(),
        None if projection is None else torch.nn.functional.pad(projection, (0, 0, 0, missing)).clone(),
        None if first_order is None else first_order.clone(),
    )
