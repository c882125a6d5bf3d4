"""The bytes of embeddings: what one costs to serve, and the price of each candidate dimension.

All sizes are measured on ``packed()``, never computed by a formula. Prices and full tables are measured on modules on
the ``meta`` device, where tensors have shapes but no memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.budget import NO_CANDIDATE, TooFewBytes, largest
from pipeline.allocation.evidence import Evidence
from pipeline.data.schema import Field, Schema
from pipeline.embeddings.contract import FieldEmbedding
from pipeline.embeddings.mixed import MixedTables

Build = Callable[[Schema, int, Allocation], FieldEmbedding]  # (schema, dim, allocation)
Plain = Callable[[Schema, Mapping[str, int], int], FieldEmbedding]  # (schema, dims, dim)


@dataclass(frozen=True)
class Cost:
    """The size of a served embedding. The kind of a tensor is its ``packed()`` key up to the first dot.

    Args:
        bytes_by_kind: stored bytes of each kind.
        params_by_kind: stored numbers of each kind.
    """

    bytes_by_kind: dict[str, int]
    params_by_kind: dict[str, int]

    @property
    def bytes(self) -> int:
        """Stored bytes of all kinds."""
        return sum(self.bytes_by_kind.values())

    @property
    def params(self) -> int:
        """Stored numbers of all kinds."""
        return sum(self.params_by_kind.values())

    @property
    def table_params(self) -> int:
        """Numbers in the tables alone, which papers report as "Params"."""
        return self.params_by_kind.get("table", 0)


def cost(packed: Mapping[str, Tensor]) -> Cost:
    """The size of the tensors that ``packed()`` returns.

    A tensor counts as it is stored: a boolean takes a byte. A method that packs its bits or its non-zeros must return
    the packed tensors.

    Args:
        packed: tensors by name; they may be on the ``meta`` device.

    Raises:
        ValueError: for a sparse tensor, because its values and indices must be counted as tensors of their own.
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


def measured(make: Callable[[], FieldEmbedding]) -> Cost:
    """The size of the served embedding that ``make`` builds; it is built on the ``meta`` device, without memory."""
    with torch.device("meta"):
        return cost(make().packed())


def full_tables(schema: Schema, dim: int) -> Cost:
    """The size of the plain embedding: a table of width ``dim`` for every field, without projections."""
    return measured(lambda: MixedTables(schema, dict.fromkeys(schema.names, dim), dim))


def prices(plain: Plain, schema: Schema, candidates: Sequence[Sequence[int]], dim: int) -> np.ndarray:
    """Price of every candidate of every field, measured on an embedding of that field alone.

    Args:
        plain: builds the embedding to measure. Its tensors for a field may depend on the field's cardinality, width and
            dim, but not on its name or on other fields.
        schema: F fields.
        candidates: candidate dims of each field; 0, which drops the field, is free.
        dim: D.

    Returns:
        (F, N) int64 bytes, where N is the length of the longest list; `NO_CANDIDATE` where a list is shorter.

    Raises:
        ValueError: if the number of lists is not F.
    """
    if len(candidates) != len(schema):
        raise ValueError(f"candidates must be given for {len(schema)} fields, got {len(candidates)}")
    known: dict[tuple[int, int, int], int] = {}
    table = np.full((len(schema), max(map(len, candidates))), NO_CANDIDATE, dtype=np.int64)
    for f, (field, dims) in enumerate(zip(schema.fields, candidates, strict=True)):
        for n, d in enumerate(dims):
            key = (field.cardinality, field.width, d)
            if key not in known:
                known[key] = _price(plain, field, d, dim)
            table[f, n] = known[key]
    return table


def _price(plain: Plain, field: Field, d: int, dim: int) -> int:
    return measured(lambda: plain(Schema((field,)), {field.name: d}, dim)).bytes if d else 0


def bytes_per_field(plain: Plain, schema: Schema, dims: Mapping[str, int], dim: int) -> dict[str, int]:
    """Bytes of each field for its dimension in ``dims``; see `prices`."""
    column = prices(plain, schema, [(dims[name],) for name in schema.names], dim)[:, 0]
    return dict(zip(schema.names, column.tolist(), strict=True))


def spent(build: Build, schema: Schema, dim: int, allocation: Allocation) -> Cost:
    """The size of a served allocation, measured on the embedding that ``build`` makes of its kept fields."""
    kept = schema.subset(allocation.kept())
    return measured(lambda: build(kept, dim, allocation.of_kept()))


def fill_limit(evidence: Evidence, build: Build, make: Callable[[int], Allocation], most: int) -> Allocation:
    """The largest allocation of ``make(1)`` to ``make(most)`` within the evidence's limit.

    Args:
        evidence: its limit, in bytes, is the one to fill.
        build: of the method.
        make: number -> allocation; the bytes must not fall as the number rises.
        most: largest number to try.

    Raises:
        TooFewBytes: if even ``make(1)`` exceeds the limit; the message says its bytes.
    """

    def size(number: int) -> int:
        return spent(build, evidence.schema, evidence.dim, make(number)).bytes

    return make(largest(size, most, evidence.limit, evidence.method))


def training_bytes(embedding: FieldEmbedding) -> int:
    """Bytes of an embedding in training: its parameters, two Adam moments for each, and its buffers."""
    trained = sum(p.numel() * p.element_size() for p in embedding.parameters())
    return 3 * trained + sum(b.numel() * b.element_size() for b in embedding.buffers())


@dataclass(frozen=True)
class Uniform:
    """One dimension for all fields, near a target in bytes.

    Args:
        dim: width of every table.
        bytes: size when served.
        gap: ``bytes`` divided by the target, minus 1; 0.1 means 10 % too large.
    """

    dim: int
    bytes: int
    gap: float


def widest_uniform(make: Callable[[int], FieldEmbedding], most: int, limit: int, method: str) -> Uniform:
    """The dimension for all fields whose bytes are the most within the limit; ties go to the wider.

    Args:
        make: dimension -> embedding.
        most: largest dimension to try, from 1.
        limit: bytes.
        method: name for the error message.

    Raises:
        TooFewBytes: if even the cheapest dimension exceeds the limit; the message says its bytes.
    """
    sizes = {d: measured(lambda d=d: make(d)).bytes for d in range(1, most + 1)}  # type: ignore[misc]
    fitting = [d for d, size in sizes.items() if size <= limit]
    if not fitting:
        least = min(sizes.values())
        raise TooFewBytes(
            f"{method}: no dimension makes {limit:,} bytes or less, the least is {least:,}; raise the budget"
        )
    best = max(fitting, key=lambda d: (sizes[d], d))  # rows of a few bits take whole bytes, so sizes may be equal
    return Uniform(best, sizes[best], sizes[best] / limit - 1)


def nearest_uniform(schema: Schema, dim: int, target: int) -> Uniform:
    """The plain tables of width 1 to ``dim`` whose size is nearest to ``target`` bytes; ties go to the narrower.

    Raises:
        ValueError: if the target is below 1 byte.
    """
    if target < 1:
        raise ValueError(f"a target must be at least 1 byte, got {target}")
    sizes = {d: full_tables(schema, d).bytes for d in range(1, dim + 1)}
    nearest = min(sizes, key=lambda d: (abs(sizes[d] - target), d))
    return Uniform(nearest, sizes[nearest], sizes[nearest] / target - 1)
