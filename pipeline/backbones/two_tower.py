"""Two towers: items by what they are, users by what they did. Wang, Brovman, Madhvanath 2021, "Personalized
Embedding-based e-Commerce Recommendations at eBay", arXiv 2102.06156."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from pipeline.data.interactions import EVENT
from pipeline.data.schema import Schema
from pipeline.models.dense import Dense
from pipeline.models.retriever import History
from pipeline.workflow.validation import Count, Fraction

Ids = Literal["none", "only", "both"]
Pooling = Literal["gru", "mean", "attention"]


class Backbone(nn.Module):
    """An item's vector is an MLP of its fields. A query's vector is an MLP of the user's fields and of the user's
    latest interactions, each one the item's vector and the fields of the event.

    The paper's text was not at hand. Its abstract and talks name the parts: items by their content for the cold start,
    a GRU over what the user did, and ablation of data in training.
    NOTE[DIFF]: the age of an event is a field with buckets, not log(1 + age) as a number.
    NOTE[DIFF]: how data are ablated in training is not published; see ``ablate_latest`` to ``ablate_fields``.

    Args:
        schema: fields with roles; see `fields`.
        dim: D.
        keys: the fields that identify users and items.
        ids: "none": items are known by their content alone, users by their fields without their identity; "only": by
            the field that identifies them, alone; "both".
        id_dropout: share of the items whose identifying vector is dropped in training, with ids "both".
        user_id: whether the field that identifies the user is used.
        pooling: of the interactions: "gru", from the earliest to the latest; "mean"; or "attention", a softmax of
            scores by an MLP.
        width: K, of the vectors.
        hidden: widths of the hidden layers of the two MLPs.
        dropout: of their outputs.
        ablate_latest: share of the queries in training whose latest interactions, a random number of them, are
            removed, as if the history were served late.
        ablate_events: share of the queries in training of which all interactions of a random type are removed; without
            effect if the log has no types.
        ablate_fields: share of the content fields of items that are removed in training.
    """

    graph = False

    def __init__(
        self,
        schema: Schema,
        dim: int,
        keys: Mapping[str, str],
        *,
        ids: Ids = "none",
        id_dropout: Fraction = 0.3,
        user_id: bool = False,
        pooling: Pooling = "gru",
        width: Count = 64,
        hidden: Sequence[Count] = (128,),
        dropout: Fraction = 0.1,
        ablate_latest: Fraction = 0.0,
        ablate_events: Fraction = 0.0,
        ablate_fields: Fraction = 0.0,
    ) -> None:
        super().__init__()
        self.pooling, self.id_dropout = pooling, id_dropout
        self.ablate_latest, self.ablate_events, self.ablate_fields = ablate_latest, ablate_events, ablate_fields
        of_role = {role: [f.name for f in schema.fields if f.role == role] for role in ("user", "item", "event")}
        of_item = of_role["item"]
        self.key = of_item.index(keys["item"]) if keys["item"] in of_item else None
        self.by_content = len(of_item) > (self.key is not None)
        self.typed = EVENT in of_role["event"]  # otherwise events have no type, only an age
        self.item_tower = tower(len(of_item) * dim, hidden, width, dropout)
        event = width + len(of_role["event"]) * dim
        self.gru = nn.GRU(event, width, batch_first=True) if pooling == "gru" else None
        self.scorer = tower(event, hidden, 1, 0.0) if pooling == "attention" else None
        pooled = width if pooling == "gru" else event
        self.nothing = nn.Parameter(torch.zeros(pooled))  # stands for an empty history
        self.query_tower = tower(pooled + len(of_role["user"]) * dim, hidden, width, dropout)

    @staticmethod
    def fields(schema: Schema, keys: Mapping[str, str], *, ids: Ids = "none", user_id: bool = False) -> list[str]:
        """The names of the fields that these options use."""

        def used(name: str, role: str) -> bool:
            if name == keys["item"]:
                return ids != "none"
            if name == keys["user"]:
                return user_id
            return role != "item" or ids != "only"

        return [field.name for field in schema.fields if used(field.name, field.role)]

    def items(self, embedded: Tensor) -> Tensor:
        """(n, F_i, D) -> (n, K) of length 1."""
        if self.training:
            kept = torch.rand(embedded.shape[:2], device=embedded.device) >= self.ablate_fields
            if self.key is not None:
                dropped = self.id_dropout if self.by_content else 0.0
                kept[:, self.key] = torch.rand(len(embedded), device=embedded.device) >= dropped
            embedded = embedded * kept[..., None]
        return normalize(self.item_tower(embedded.flatten(1)), dim=1)

    def queries(self, embedded: Tensor, history: History) -> Tensor:
        """(B, F_u, D), history -> (B, K) of length 1."""
        present = self._ablated(history) if self.training else history.present
        events = torch.cat([history.items, history.events.flatten(2)], 2)
        pooled = self._pooled(events, present)
        return normalize(self.query_tower(torch.cat([pooled, embedded.flatten(1)], 1)), dim=1)

    def _pooled(self, events: Tensor, present: Tensor) -> Tensor:
        """Events (B, H, E), where present (B, H) -> (B, P)."""
        some = present.any(1)
        pooled = self.nothing.expand(len(events), -1)
        if not bool(some.any()):
            return pooled
        events, present = events[some], present[some]
        if self.gru is not None:
            # The latest event comes first, and the GRU ends with it; what is not present goes to the end.
            order = present.long().cumsum(1)
            lengths = order[:, -1]
            place = torch.where(present, lengths[:, None] - order, present.shape[1] - 1)
            turned = torch.zeros_like(events).scatter_add_(
                1, place[..., None].expand_as(events), events * present[..., None]
            )
            packed = nn.utils.rnn.pack_padded_sequence(turned, lengths.cpu(), batch_first=True, enforce_sorted=False)
            # On a GPU, autocast gives a GRU float16 whatever type is asked for, and its gradients vanish there.
            with torch.autocast(events.device.type, enabled=False):
                found = self.gru(packed)[1][0]
        elif self.scorer is not None:
            scores = self.scorer(events)[..., 0].masked_fill(~present, -torch.inf)
            found = (scores.softmax(1)[..., None] * events).sum(1)
        else:
            found = (events * present[..., None]).sum(1) / present.sum(1, keepdim=True)
        return pooled.index_copy(0, some.nonzero()[:, 0], found)

    def _ablated(self, history: History) -> Tensor:
        """(B, H) what is left of the histories in training."""
        present, device = history.present, history.present.device
        rows, most = present.shape
        if self.ablate_latest and most:
            drawn = torch.rand(rows, device=device) < self.ablate_latest
            removed = (torch.rand(rows, device=device) * (present.sum(1) + 1)).long() * drawn
            present = present & (torch.arange(most, device=device) >= removed[:, None])
        if self.ablate_events and self.typed:
            types = history.ids[..., 0]  # the type is the first field of role "event"
            drawn = torch.rand(rows, device=device) < self.ablate_events
            one = torch.randint(max(0, int(types.max())) + 1, (rows,), device=device)
            present = present & ~((types == one[:, None]) & drawn[:, None])
        return present


def tower(inputs: int, hidden: Sequence[int], outputs: int, dropout: float) -> nn.Sequential:
    """An MLP with ReLU: (..., inputs) -> (..., outputs)."""
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [Dense(inputs, width), nn.ReLU(), nn.Dropout(dropout)]
        inputs = width
    return nn.Sequential(*layers, Dense(inputs, outputs))
