"""A small folder of encoded interactions, as `encode` would write it, and models of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.encoded import Encoded
from pipeline.data.interactions import Columns
from pipeline.data.schema import PADDING, Field, Schema
from pipeline.data.split import PARTS
from pipeline.embeddings.mixed import MixedTables
from pipeline.experiment.experiment import Experiment
from pipeline.models.retriever import Retriever, fields_used
from pipeline.workflow.params import Params
from pipeline.workflow.plug import plug
from pipeline.workflow.validation import validated
from pipeline.workflow.yaml_values import read_yaml
from tests.contracts import randomised
from tests.project import ROOT

DIM = 4
KEYS = {"user": "user", "item": "item"}


def write_interactions(
    folder: Path,
    users: int = 30,
    items: int = 20,
    blocks: int = 2,
    history: int = 3,
    each: int | None = None,
    seed: int = 0,
) -> Path:
    """Users and items are in blocks, and nine of ten interactions are within a block.

    Every user interacts with ``each`` items, by default half of all, in order, each once: the first ones are rows of
    ``train``, the next ones of ``arch``, ``val`` and ``test``. With histories, a row is a query of its own and has the
    user's latest interactions; else the rows of a user in a part are one query. The last item is cold: only rows of
    ``test`` have it. The last user has the first item in ``train`` and nothing before it.
    """
    rng = np.random.default_rng(seed)
    schema = Schema(
        (
            Field("user", users + 1, role="user"),
            Field("country", 4, role="user"),
            Field("item", items, role="item"),  # id 0 is that of the cold item
            Field("title", 4 * blocks, width=3, role="item"),
            Field("price", 3, role="item"),
            *((Field("event", 3, role="event"), Field("event_age", 5, role="event")) if history else ()),
        )
    )
    of_user, of_item = np.arange(users) % blocks, np.arange(items) % blocks
    titles = 4 * of_item[:, None] + np.stack([rng.permutation(4)[:3] for _ in range(items)])
    titles[np.arange(3) >= rng.integers(1, 4, (items, 1))] = PADDING
    numbers = (np.arange(items) + 1) % items
    tables = {
        "users": np.stack([np.arange(users) + 1, rng.integers(0, 4, users)], 1),
        "items": np.column_stack([numbers, titles, rng.integers(0, 3, items)]),
    }
    columns, rows = Columns(history, 2 if history else 0), {part: [] for part in PARTS}
    for user in range(users - 1):
        own = of_item == of_user[user]
        chances = np.where(own, 0.9 / own.sum(), 0.1 / max(1, (~own).sum()))
        chances[-1] = 0  # the cold item
        taken = rng.choice(items, items // 2 if each is None else each, replace=False, p=chances / chances.sum())
        for place, item in enumerate(taken):
            part = PARTS[int(np.searchsorted([0.6, 0.7, 0.85], place / len(taken), side="right"))]
            rows[part].append((user, item, taken[:place][::-1]))
        if user % 3 == 0:
            rows["test"].append((user, items - 1, taken[::-1]))
    rows["train"].append((users - 1, 0, taken[:0]))
    folder.mkdir(parents=True, exist_ok=True)
    for part, found in rows.items():
        ids = np.full((len(found), columns.number), PADDING, np.int32)
        for number, (user, item, past) in enumerate(found):
            latest = past[:history]
            ids[number, :4] = number if history else user, user, item, 0
            ids[number, 4 : 4 + len(latest)] = latest
            for field, most in enumerate((3, 5)[: columns.event_fields]):
                first = 4 + history * (1 + field)
                ids[number, first : first + len(latest)] = rng.integers(0, most, len(latest))
        (folder / part).mkdir()
        np.save(folder / part / "ids.npy", ids)
        np.save(folder / part / "labels.npy", np.ones(len(ids), np.uint8))
    for name, table in tables.items():
        np.save(folder / f"{name}.npy", table.astype(np.int32))
    np.save(folder / "counts.npy", np.bincount([item for _, item, _ in rows["train"]], minlength=items))
    labels = {part: {"rows": len(rows[part]), "mean": 1.0, "least": 1, "most": 1, "binary": True} for part in PARTS}
    record = {"labels": labels, "raw_sha256": "0", "interactions": {"history": history, "keys": KEYS}}
    (folder / "schema.json").write_text(json.dumps(schema.to_dict() | record))
    return folder


def retriever(data: Encoded, backbone: str, dim: int = DIM, parts: tuple[Any, ...] = ("train",), **options: Any) -> Any:
    """A model in evaluation mode with random parameters, in double precision."""
    assert data.interactions is not None
    made = plug("backbones", backbone).Backbone
    kept = fields_used(made, data.schema, KEYS, options)
    embedding = MixedTables(kept, dict.fromkeys(kept.names, dim), dim)
    model = Retriever(data.interactions, data.interactions.pairs(*parts), embedding, made, options, kept)
    return randomised(model).double().eval()


def changed(folder: Path, name: str, options: dict[str, Any] | None = None, **changes: Any) -> Experiment:
    """The repository's params.yaml for retrieval with a backbone and its options, and with other changes by section."""
    values = read_yaml(ROOT / "params.yaml")
    basic: dict[str, Any] = {
        "dim": 8,
        "task": {"name": "retrieval", "options": {"negatives": 20}},
        "backbone": {"name": name, "options": options or {}},
        "candidates": {"few": [2, 4, 8]},
        "search": {"candidates": "few", "batch_size": 300, "epochs": 1},
        "retrain": {"batch_size": 300, "epochs": 3, "patience": None, "lr": 0.02},
    }
    for change in (basic, changes):
        for section, value in change.items():
            values[section] = {**values[section], **value} if isinstance(value, dict) else value
    return Experiment(validated(Params, values, "params.yaml"), Encoded.load(folder))
