"""Bytes: what an embedding costs to serve, and what each candidate dimension would cost.

Everything is measured on ``packed()``. Prices and full tables are measured too, on modules built on the
``meta`` device, which have shapes but no memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.budget import NO_CANDIDATE, TooFewBytes
from pipeline.data.schema import Field, Schema
from pipeline.embeddings.contract import FieldEmbedding
from pipeline.embeddings.mixed import MixedTables

Build = Callable[[Schema, int, Allocation], FieldEmbedding]


@dataclass(frozen=True)
class Cost:
    """What it takes to serve an embedding. A kind is the part of a ``packed()`` key before its first dot.

    Args:
        bytes_by_kind: stored bytes of each kind.
        params_by_kind: stored numbers of each kind.
    """

    bytes_by_kind: dict[str, int]
    params_by_kind: dict[str, int]

    @property
    def bytes(self) -> int:
        return sum(self.bytes_by_kind.values())

    @property
    def params(self) -> int:
        return sum(self.params_by_kind.values())

    @property
    def table_params(self) -> int:
        """What papers report as "Params": the numbers in the tables alone."""
        return self.params_by_kind.get("table", 0)


def cost(packed: Mapping[str, Tensor]) -> Cost:
    """Count what ``packed()`` would store; tensors on the ``meta`` device will do.

    A tensor counts as it is stored, element by element: a boolean takes a byte. A method that packs its bits
    or its non-zeros has to hand over the packed tensors.

    Raises:
        ValueError: for a sparse tensor, whose parts have sizes of their own.
    """
    sizes: Counter[str] = Counter()
    numbers: Counter[str] = Counter()
    for key, tensor in packed.items():
        if tensor.layout != torch.strided:
            raise ValueError(f"packed tensor {key!r} is {tensor.layout}; pack its values and indices as dense tensors")
        kind = key.split(".", 1)[0]
        sizes[kind] += tensor.numel() * tensor.element_size()
        numbers[kind] += tensor.numel()
    return Cost(dict(sizes), dict(numbers))


def full_tables(schema: Schema, dim: int) -> Cost:
    """The plain model: every field a table of width ``dim``, nothing to lift."""
    with torch.device("meta"):
        return cost(MixedTables(schema, dict.fromkeys(schema.names, dim), dim).packed())


def prices(build: Build, schema: Schema, candidates: Sequence[Sequence[int]], dim: int) -> np.ndarray:
    """Price of every candidate of every field, measured on a one-field embedding.

    Args:
        build: the method's ``build(schema, dim, allocation)``. What it packs for a field may depend on the
            field's cardinality, width and dim, not on its name or on other fields.
        schema: F fields.
        candidates: for each field its candidate dims; 0, which drops the field, is free.
        dim: D.

    Returns:
        (F, N) int64 bytes, N the length of the longest list; `NO_CANDIDATE` where a list is shorter.
    """
    if len(candidates) != len(schema):
        raise ValueError(f"candidates for {len(candidates)} fields, however {len(schema)=}")
    measured: dict[tuple[int, int, int], int] = {}
    table = np.full((len(schema), max(map(len, candidates))), NO_CANDIDATE, dtype=np.int64)
    for f, (field, dims) in enumerate(zip(schema.fields, candidates, strict=True)):
        for n, d in enumerate(dims):
            key = (field.cardinality, field.width, d)
            if key not in measured:
                measured[key] = _price(build, field, d, dim)
            table[f, n] = measured[key]
    return table


def _price(build: Build, field: Field, d: int, dim: int) -> int:
    if d == 0:
        return 0
    with torch.device("meta"):
        embedding = build(Schema((field,)), dim, Allocation("price", {field.name: d}))
    return cost(embedding.packed()).bytes


def bytes_per_field(build: Build, schema: Schema, dims: Mapping[str, int], dim: int) -> dict[str, int]:
    """Bytes that each field of an allocation takes; see `prices`."""
    column = prices(build, schema, [(dims[name],) for name in schema.names], dim)[:, 0]
    return dict(zip(schema.names, column.tolist(), strict=True))


def spent(build: Build, schema: Schema, dim: int, allocation: Allocation) -> Cost:
    """What an allocation costs to serve, measured on what the method builds of the fields that are kept."""
    with torch.device("meta"):
        embedding = build(schema.subset(allocation.kept()), dim, allocation.of_kept())
    return cost(embedding.packed())


def training_bytes(embedding: FieldEmbedding) -> int:
    """Bytes of an embedding in training: its parameters with Adam's two moments of each, and its buffers."""
    trained = sum(p.numel() * p.element_size() for p in embedding.parameters())
    return 3 * trained + sum(b.numel() * b.element_size() for b in embedding.buffers())


@dataclass(frozen=True)
class Uniform:
    """The uniform model nearest to a target in bytes.

    Args:
        dim: width of every table; the backbone sees it unlifted.
        bytes: of the tables.
        gap: ``bytes`` over the target, minus 1; 0.1 means a tenth too large.
    """

    dim: int
    bytes: int
    gap: float


def widest_uniform(build: Build, schema: Schema, dim: int, limit: int, method: str = "uniform") -> Uniform:
    """Of one dimension for all fields, 1 to ``dim``, the one that fills ``limit`` bytes best; ties to the wider.

    Args:
        build: of what is built with that dimension; it may store numbers in fewer bits.
        method: name in the allocation that ``build`` is given.

    Raises:
        TooFewBytes: if even dimension 1 needs more; says how much.
    """
    sizes = {
        d: spent(build, schema, dim, Allocation(method, dict.fromkeys(schema.names, d))).bytes
        for d in range(1, dim + 1)
    }
    fitting = [d for d, size in sizes.items() if size <= limit]
    if not fitting:
        least = min(sizes.values())
        raise TooFewBytes(
            f"{method}: no dimension makes {limit:,} bytes or less, the least is {least:,}; raise the budget"
        )
    best = max(fitting, key=lambda d: (sizes[d], d))  # numbers of few bits come in whole bytes
    return Uniform(best, sizes[best], sizes[best] / limit - 1)


def nearest_uniform(schema: Schema, dim: int, target: int) -> Uniform:
    """Of the plain models of width 1 to ``dim``, the one nearest to ``target`` bytes; ties to the narrower."""
    if target < 1:
        raise ValueError(f"target must be at least 1 byte, however: {target=}")
    sizes = {d: full_tables(schema, d).bytes for d in range(1, dim + 1)}
    nearest = min(sizes, key=lambda d: (abs(sizes[d] - target), d))
    return Uniform(nearest, sizes[nearest], sizes[nearest] / target - 1)
