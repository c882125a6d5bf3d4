"""Tables of plain mixed dimensions, field by field, as TorchRec's ``EmbeddingBagConfig`` describes them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.api.tables import Tables
from pipeline.embeddings.mixed import MixedTables


@dataclass(frozen=True)
class FieldTable:
    """The table of one field.

    Args:
        config: arguments of ``EmbeddingBagConfig``: ``num_embeddings``, ``embedding_dim``, and the name of the field as
            ``name`` and in ``feature_names``. Set its ``pooling`` to ``PoolingType.MEAN``.
        weight: (rows, d), the weights of the table.
        projection: (d, D), which lifts a vector to the common width: ``x = e @ projection``; None if d is D.
    """

    config: dict[str, Any]
    weight: Tensor
    projection: Tensor | None


def field_tables(tables: Tables, multiple: int = 1) -> list[FieldTable]:
    """Copies of the tables of the kept fields, in the order of `Tables.fields`.

    Args:
        tables: of plain mixed dimensions.
        multiple: every d is padded with zeros to a multiple of this number. FBGEMM's tables need 4.

    Raises:
        TypeError: if the method's tables are of another kind.
        ValueError: if ``multiple`` is below 1, or the tables hold first-order weights, for which TorchRec has no place.
    """
    embedding = tables.model.embedding
    if not isinstance(embedding, MixedTables) or type(embedding).packed is not MixedTables.packed:
        raise TypeError(f"only plain mixed dimensions are TorchRec's tables, got {type(embedding).__name__}")
    if tables.first_order:
        raise ValueError("first-order weights are no vectors of a field; make the tables without first_order")
    if multiple < 1:
        raise ValueError(f"multiple must be at least 1, got {multiple}")
    parts: dict[int, FieldTable] = {}  # by number of the kept field
    for d, (start, stop) in zip(embedding.distinct.tolist(), itertools.pairwise(embedding.groups), strict=True):
        name, missing = str(d), -d % multiple
        weights = embedding.tables[name].get_parameter("weight").detach().split(embedding.cardinalities[start:stop])
        lifts = embedding.projections[name].detach() if name in embedding.projections else [None] * (stop - start)
        for field, weight, lift in zip(embedding.order[start:stop].tolist(), weights, lifts, strict=True):
            if missing and lift is None:
                lift = torch.eye(d, device=weight.device)
            config = {
                "num_embeddings": len(weight),
                "embedding_dim": d + missing,
                "name": tables.fields[field],
                "feature_names": [tables.fields[field]],
            }
            wide = torch.nn.functional.pad(weight, (0, missing)).clone()
            lifted = None if lift is None else torch.nn.functional.pad(lift, (0, 0, 0, missing)).clone()
            parts[field] = FieldTable(config, wide, lifted)
    return [parts[field] for field in range(len(parts))]
