"""A model for retrieval: vectors of queries and of items, whose inner products rank the items.

**A backbone for retrieval is one file** in ``pipeline/backbones``, with a class ``Backbone``, a `torch.nn.Module`. It
is one of two kinds. A graph backbone has ``graph = True`` and turns the vectors of all users and items, the nodes of
the graph of training interactions, into others::

    class Backbone(nn.Module):
        graph = True

        def __init__(self, schema: Schema, dim: int, keys: Mapping[str, str], *, option: type = default, ...) -> None
        def forward(self, vectors: Tensor, graph: Graph) -> Tensor  # (V, D) -> (V, K)

A tower backbone has ``graph = False`` and turns what users, items and events are into vectors::

        def items(self, embedded: Tensor) -> Tensor  # (n, F_i, D) -> (n, K)
        def queries(self, embedded: Tensor, history: History) -> Tensor  # (B, F_u, D) -> (B, K)

``schema`` has the kept fields, and ``keys`` names those that identify users and items. A backbone may define a static
method ``fields(schema, keys, *, option, ...) -> names``, the fields that it uses; others get no table. By default, a
graph backbone uses the two fields that identify users and items, and a tower backbone uses all. ``needs`` may name the
roles that must have a field; by default a graph backbone needs users and items, and a tower backbone needs items.
``watched() -> dict`` may name numbers to record after each epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.data.interactions import EVENT, ITEM, USER, USER_COLUMN, Interactions, Pairs
from pipeline.data.schema import PADDING, Schema
from pipeline.embeddings.batch import RoleLookup
from pipeline.embeddings.contract import FieldEmbedding
from pipeline.models.dense import settle
from pipeline.models.graph import Graph
from pipeline.models.model import MakeBackbone, Model, with_backbone
from pipeline.models.precision import Mixed
from pipeline.workflow.validation import keywords


class NotFinite(ValueError):
    """A score that is not a finite number."""


@dataclass(frozen=True)
class History:
    """The last H interactions of the users of B queries, the latest first.

    Args:
        items: (B, H, K) vectors of the items; zeros where a history is shorter.
        events: (B, H, F_e, D) vectors of the fields of role "event"; likewise.
        present: (B, H) bool, whether there is such an interaction.
        ids: (B, H, fields of role "event") their ids.
    """

    items: Tensor
    events: Tensor
    present: Tensor
    ids: Tensor


def retrieves(backbone: MakeBackbone) -> bool:
    """Whether a backbone is one for retrieval; see the module's docstring."""
    return hasattr(backbone, "graph")


def fields_used(backbone: MakeBackbone, schema: Schema, keys: Mapping[str, str], options: Mapping[str, Any]) -> Schema:
    """The fields of interactions that a backbone uses.

    Args:
        backbone: class.
        schema: all fields.
        keys: the fields that identify users and items, by role.
        options: of the backbone.
    """
    chosen = getattr(backbone, "fields", None)
    if chosen is not None:
        own = {name: value for name, value in options.items() if name in keywords(chosen)}
        return schema.subset(chosen(schema, keys, **own))
    return schema.subset(keys.values()) if getattr(backbone, "graph", False) else schema


class Retriever(Mixed, nn.Module):
    """Rows of interactions (B, C), item numbers (n,) -> vectors of the queries (B, K) and of the items (n, K).

    Args:
        interactions: users, items, and the fields.
        edges: the pairs of the graph, or None for those of no interaction; a tower backbone does not use them.
        embedding: of the kept fields; its ``dim`` is D.
        backbone: class, see the module's docstring.
        options: of the backbone.
        kept: the fields that the embedding has, of those that the backbone uses.

    Raises:
        ValueError: if users or items would have no field.
    """

    def __init__(
        self,
        interactions: Interactions,
        edges: Pairs,
        embedding: FieldEmbedding,
        backbone: MakeBackbone,
        options: Mapping[str, Any],
        kept: Schema,
    ) -> None:
        super().__init__()
        self.interactions, self.edges, self.kept, self.options = interactions, edges, kept, dict(options)
        self.schema, self.make = interactions.schema, backbone
        self.embedding = embedding
        embedding.take_first_order(False)
        self.lookup = RoleLookup(kept)
        self.backbone = backbone(kept, embedding.dim, interactions.keys, **self.options)
        self.is_graph = bool(getattr(self.backbone, "graph", False))
        for role in getattr(self.backbone, "needs", (USER, ITEM) if self.is_graph else (ITEM,)):
            if not self.lookup.number(role):
                raise ValueError(
                    f"backbone {backbone.__module__.rpartition('.')[2]} needs a field of role {role!r}, and none is "
                    "left; keep one, e.g. with candidates without 0"
                )
        for role, table in ((USER, interactions.users), (ITEM, interactions.items)):
            own = torch.from_numpy(np.ascontiguousarray(table[:, interactions.slots(role, kept)]))
            self.register_buffer(f"ids_of_{role}", own, persistent=False)
        self.graph = self._graph() if self.is_graph else None

    ids_of_user: Tensor
    ids_of_item: Tensor

    def rebuilt(self, embedding: FieldEmbedding) -> Retriever:
        """A copy of this model with another embedding of the same fields; see `pipeline.models.model.Model`."""
        with torch.random.fork_rng(devices=[]):
            other = Retriever(self.interactions, self.edges, embedding, self.make, self.options, self.kept)
        return with_backbone(other, self.backbone)

    def among(self, interactions: Interactions) -> Retriever:
        """The trained model for other users and items, in evaluation mode; it shares the embedding.

        Args:
            interactions: with the same fields.

        Raises:
            ValueError: if the model knows users and items by a graph of them.
        """
        if self.is_graph:
            raise ValueError("a graph model knows only the users and items that it was trained with; train it again")
        with torch.random.fork_rng(devices=[]):
            other = Retriever(interactions, self.edges, self.embedding, self.make, self.options, self.kept)
        return with_backbone(other, self.backbone)

    def finish(self, dense_bits: int | None = None) -> None:
        """Settle the embedding and rounded dense weights on what is served; see `pipeline.models.model.Model`."""
        self.embedding.finish()
        settle(self.backbone, dense_bits)

    def forward(self, rows: Tensor, numbers: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Rows (B, C), item numbers (n,) or None for all items -> (B, K), (n, K)."""
        users = rows[:, USER_COLUMN].long()
        if numbers is None:
            numbers = torch.arange(len(self.ids_of_item), device=rows.device)
        if self.is_graph:
            vectors = self.vectors()
            return vectors[self._nodes(USER)[users]], vectors[self._nodes(ITEM)[numbers]]
        return self._towers(rows, users, numbers)

    def vectors(self) -> Tensor:
        """(V, K) vectors of all nodes of the graph."""
        assert self.graph is not None
        embedded: Tensor = self.embedding(self.lookup.all(self.kept))
        return self.products(self.backbone, embedded, self.graph, like=embedded)

    def _towers(self, rows: Tensor, users: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        columns = self.interactions.columns
        past = columns.of_history(rows).long()
        present = past != PADDING
        distinct, place = torch.cat([numbers, past[present]]).unique(return_inverse=True)
        events = columns.of_events(rows)
        kept_events = self._kept_events(events)
        embedded = self._embedded(
            {USER: self.ids_of_user[users], ITEM: self.ids_of_item[distinct], EVENT: kept_events[present]}
        )
        backbone: Any = self.backbone
        items = self.products(backbone.items, embedded[ITEM], like=embedded[ITEM])
        of_past = items.new_zeros(*past.shape, items.shape[1])
        of_past[present] = items[place[len(numbers) :]]
        of_events = items.new_zeros(*past.shape, *embedded[EVENT].shape[1:])
        of_events[present] = embedded[EVENT]
        history = History(of_past, of_events, present, events)
        queries = self.products(backbone.queries, embedded[USER], history, like=items)
        return queries, items[place[: len(numbers)]]

    def _kept_events(self, ids: Tensor) -> Tensor:
        """(B, H, f): ids of the kept fields of role "event"."""
        own = self.schema.of_role(EVENT)
        names = [] if own is None else [i for i, name in enumerate(own.names) if name in self.kept.names]
        return ids[:, :, names]

    def _embedded(self, blocks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The vectors (n, fields, D) of each role, from one pass of the embedding."""
        asked = {role: ids for role, ids in blocks.items() if self.lookup.number(role) and len(ids)}
        vectors: Tensor = self.embedding(self.lookup(asked))
        parts = vectors.split([len(ids) * self.lookup.number(role) for role, ids in asked.items()])
        width = vectors.shape[1]
        embedded = {role: part.view(len(asked[role]), -1, width) for role, part in zip(asked, parts, strict=True)}
        for role, ids in blocks.items():
            embedded.setdefault(role, vectors.new_zeros(len(ids), self.lookup.number(role), width))
        return embedded

    def _nodes(self, role: str) -> Tensor:
        """The node of each user or item, by its number."""
        (name,) = [field.name for field in self.kept.fields if field.role == role]
        first = int(self.kept.first_rows[self.kept.names.index(name)])
        ids: Tensor = getattr(self, f"ids_of_{role}")[:, 0]
        return ids.long() + first

    def _graph(self) -> Graph:
        users = self._nodes(USER)[torch.from_numpy(self.edges.users)]
        items = self._nodes(ITEM)[torch.from_numpy(self.edges.items)]
        return Graph(users, items, self.kept.num_rows)


AnyModel = Model | Retriever
