"""Hand-made columns."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from pipeline.describing.column import Column


def column(values: Sequence[Any] | pa.Array, name: str = "x", whole: bool = True) -> Column:
    return Column(name, values if isinstance(values, pa.Array) else pa.array(values), whole)


def drawn(draw: Callable[[random.Random], Any], rows: int = 1000) -> list[Any]:
    """Values that a function draws, always the same ones."""
    rng = random.Random(0)
    return [draw(rng) for _ in range(rows)]
