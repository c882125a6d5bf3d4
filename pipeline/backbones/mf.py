"""Matrix factorisation: a user's vector and an item's vector. Koren, Bell, Volinsky 2009, IEEE Computer 42(8)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from pipeline.data.interactions import ITEM, USER
from pipeline.data.schema import Schema
from pipeline.models.retriever import History


class Backbone(nn.Module):
    """The vectors of the fields that identify the user and the item, as they are.

    NOTE[DIFF]: Koren et al. add biases of users and items. Here, as in LightGCN's comparison, there are none.

    Args:
        schema: of the two fields.
        dim: D.
        keys: these fields.
    """

    graph = False
    needs = (USER, ITEM)

    def __init__(self, schema: Schema, dim: int, keys: Mapping[str, str]) -> None:
        super().__init__()

    @staticmethod
    def fields(schema: Schema, keys: Mapping[str, str]) -> list[str]:
        return list(keys.values())

    def items(self, embedded: Tensor) -> Tensor:
        return embedded[:, 0]

    def queries(self, embedded: Tensor, history: History) -> Tensor:
        return embedded[:, 0]
