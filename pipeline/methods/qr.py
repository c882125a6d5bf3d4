"""Quotient and remainder. Shi, Mudigere, Naumov, Yang 2020, "Compositional Embeddings Using Complementary Partitions
for Memory-Efficient Recommendation Systems", KDD (arXiv 1909.02107)."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, isqrt
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.budget import largest
from pipeline.allocation.evidence import Evidence
from pipeline.data.schema import Schema
from pipeline.embeddings.batch import Occurrences, spread
from pipeline.embeddings.contract import FieldEmbedding
from pipeline.embeddings.cost import spent
from pipeline.embeddings.hashed_memory import common_dim
from pipeline.embeddings.mixed import MixedTables
from pipeline.embeddings.table import INIT_SD, Table
from pipeline.workflow.plug import Least

search = None
STEPS = 10_000  # in which the share of the rows that are kept is solved for

Operation = Literal["mult", "add"]


class Compositional(FieldEmbedding):
    """Value x of a field has the vector R[x mod c] times, or plus, Q[x // c]. A field without a c has a plain table.

    The two partitions tell all values of a field apart. As ids are sorted by falling frequency, the c most frequent
    values all have a row of R of their own.

    Args:
        schema: F fields.
        dim: D.
        remainders: c of the composed fields.
        operation: "mult" or "add".

    NOTE[DIFF]: rows are normal, of a standard deviation that gives the composed vector `INIT_SD`. The code of the
    authors draws from (sqrt(1/n), 1), which is not centred.
    """

    def __init__(self, schema: Schema, dim: int, remainders: Mapping[str, int], operation: Operation) -> None:
        super().__init__()
        schema.check_names(remainders)
        if operation not in ("mult", "add"):
            raise ValueError(f"qr: operation must be 'mult' or 'add', however: {operation=}")
        self.dim, self.operation = dim, operation
        cardinalities = schema.cardinalities
        moduli = np.array([remainders.get(field.name, field.cardinality) for field in schema.fields])
        if (moduli < 1).any() or (moduli > cardinalities).any():
            raise ValueError(f"qr: remainders must lie between 1 and the field's cardinality, however: {remainders}")
        composed = np.array([name in remainders for name in schema.names])
        quotients = np.where(composed, -(-cardinalities // moduli), 0)
        self.remainder = Table(int(moduli.sum()), dim)
        self.quotient = Table(int(quotients.sum()), dim)
        begins = np.cumsum(moduli) - moduli
        of_field = [schema.first_rows, moduli, begins, np.cumsum(quotients) - quotients, composed]
        self.register_buffer("of_field", torch.from_numpy(np.stack(of_field).astype(np.int64)), persistent=False)
        sd = INIT_SD**0.5 if operation == "mult" else INIT_SD / 2**0.5
        nn.init.normal_(self.quotient.weight, std=sd)
        with torch.no_grad():
            scale = np.repeat(np.where(composed, sd / INIT_SD, 1.0), moduli)
            self.remainder.weight.mul_(torch.tensor(scale, dtype=self.remainder.weight.dtype)[:, None])

    of_field: Tensor

    def forward(self, occ: Occurrences) -> Tensor:
        """Occurrences -> (B, F, D)."""
        lengths = torch.diff(occ.ends, prepend=occ.ends.new_zeros(1))
        first, modulus, begin, quotient_begin, composed = self.of_field.repeat_interleave(
            lengths, dim=1, output_size=len(occ.rows)
        )
        ids = occ.rows - first
        values = _looked_up(self.remainder, begin + ids % modulus)
        if len(self.quotient.weight):
            places = composed.nonzero()[:, 0]
            quotients = _looked_up(self.quotient, (quotient_begin + ids // modulus)[places])
            if self.operation == "mult":
                values = values * torch.ones_like(values).index_copy(0, places, quotients)
            else:
                values = values.index_add(0, places, quotients)
        return spread(values, occ)

    def packed(self) -> dict[str, Tensor]:
        kept = {"table.remainder": self.remainder.weight.detach(), "table.quotient": self.quotient.weight.detach()}
        return {key: tensor for key, tensor in kept.items() if len(tensor)}


def _looked_up(table: Table, rows: Tensor) -> Tensor:
    """Rows in any order, some of them several times: (u,) -> (u, D)."""
    distinct, place = torch.unique(rows, return_inverse=True)
    values: Tensor = table(distinct)
    return values.index_select(0, place)


def derive(given: Evidence, *, operation: Operation = "mult", threshold: Annotated[int, Least(1)] = 200) -> Allocation:
    """One share of the rows is kept in every field, the largest within the limit.

    A field of n values has c = n times the share, but not less than the square root of n, at which c + n / c is least.
    Where that is no less than n the field has a plain table.

    NOTE[DIFF]: where even the least rows of all fields are too many at the full dimension, the dimension of all fields
    is the widest at which they are not. The paper knows no budget.

    Args:
        operation: how rows are composed.
        threshold: cardinality above which a field is composed, as in the authors' code.
    """
    schema = given.schema

    def made(steps: int, dim: int) -> Allocation:
        remainders = {}
        for field in schema.fields:
            n = field.cardinality
            c = max(ceil(n * steps / STEPS), isqrt(n - 1) + 1)
            if n > threshold and c + -(-n // c) < n:
                remainders[field.name] = c
        settings = {"operation": operation, "remainders": remainders}
        return Allocation("qr", dict.fromkeys(schema.names, dim), settings)

    def size(steps: int, dim: int) -> int:
        return spent(build, schema, given.dim, made(steps, dim)).bytes

    dim = next((d for d in range(given.dim, 1, -1) if size(1, d) <= given.limit), 1)
    return made(largest(lambda steps: size(steps, dim), STEPS, given.limit, "qr"), dim)


def build(schema: Schema, dim: int, allocation: Allocation) -> FieldEmbedding:
    """The backbone sees the allocation's dimension, so nothing has to be lifted."""
    if not allocation.settings:
        return MixedTables(schema, allocation.dims, dim)
    return Compositional(schema, common_dim(allocation), **allocation.settings)
