"""Sessions on two pages: what users of a simulated world did with the items that were recommended to them.

The worlds are those of `pipeline.chain.worlds`; their files say what in them is data and what is assumed. A model of
these rows is a behaviour model: it tells the chances of what a user does next, for the task `feedback`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field

from pipeline.chain.logs import exploring
from pipeline.chain.rows import rows
from pipeline.sources.source import BAG, CATEGORICAL, NotFound, Source
from pipeline.workflow.plug import check_name, plug
from pipeline.workflow.validation import Count, Whole, checked_options, keywords

FIELDS = dict.fromkeys(("item", "shown", "page", "skips"), CATEGORICAL) | {"history": BAG}
WORLDS, PLACE = "chain/worlds", "params.yaml: dataset.options"


def read(
    path: Path,
    *,
    world: str = "tabular",
    options: Mapping[str, Any] | None = None,
    transitions: Count = 200_000,
    seed: Whole = 0,
    epsilon: Annotated[float, Field(ge=0, le=1)] = 1.0,
    longest: Count = 100,
) -> Source:
    """Rows in the order of time. Label 0: the user skipped the item; 1: clicked it; 2: ordered it; 3: left.

    Args:
        path: for a world of real users, the folder of the encoded interactions whose users they are; else not used.
        world: a file of ``pipeline/chain/worlds``.
        options: of its ``make``, but for the folder.
        transitions: number of rows.
        seed: of the world and of the sessions.
        epsilon: chance of a random item; else an item is recommended in proportion to its popularity.
        longest: steps of a session.

    Raises:
        ValueError: naming the worlds or their options, if there is no such one.
        NotFound: if the world needs users, and the path has no encoded interactions.
    """
    check_name(WORLDS, world, f"{PLACE}.world")
    make = plug(WORLDS, world).make
    given = dict(options or {})
    if "folder" in keywords(make):
        if "folder" in given:
            raise ValueError(f"{PLACE}.options: there is no 'folder'; dataset.path names the folder")
        if not (path / "schema.json").is_file():
            raise NotFound(
                f"there is no {path / 'schema.json'}, and world {world} needs users; encode interactions, copy the "
                "folder artifacts/encoded, and set dataset.path in params.yaml to the copy"
            )
        given["folder"] = str(path)
    made = make(seed, **checked_options([make], given, f"{PLACE}.options"))
    start, _ = made.start(1, torch.Generator())
    facts: dict[str, Any] = {"items": made.items}
    # Another seed than that of the sessions: the items would depend on the luck of the users.
    batches = rows(made, exploring(made, epsilon, seed + 1), transitions, seed, longest, facts)
    defaults = {"min_count": 1, "max_bag": start.history.shape[1]}
    return Source(FIELDS, batches, f"sessions of {world}, {seed=}", defaults, facts)
