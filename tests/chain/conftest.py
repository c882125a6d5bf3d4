"""Small worlds of each kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.chain.world import World
from pipeline.chain.worlds import fitted, shifted, tabular
from tests.interactions import write_interactions

USERS, ITEMS = 240, 40
WORLDS = ("tabular", "fitted_learn", "fitted_test", "shifted")


@pytest.fixture(scope="session")
def interactions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Encoded interactions of users and items in two blocks, with the users' keys."""
    folder = write_interactions(tmp_path_factory.mktemp("chain") / "encoded", USERS, ITEMS, each=10)
    keys = {"number": list(range(USERS)), "key": [f"u{user}" for user in range(USERS)], "rows": [1] * USERS}
    pq.write_table(pa.table(keys), folder / "users.parquet")
    return folder


@pytest.fixture(scope="session")
def worlds(interactions: Path) -> dict[str, World]:
    """By name, see `WORLDS`."""
    options: dict[str, Any] = {"folder": str(interactions), "dim": 4, "known": 4, "history": 8}
    return {
        "tabular": tabular.make(0),
        "fitted_learn": fitted.make(0, half="learn", **options),
        "fitted_test": fitted.make(0, half="test", **options),
        "shifted": shifted.make(0, half="test", **options),
    }
