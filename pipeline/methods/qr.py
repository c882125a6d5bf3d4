"""Quotient and remainder. Shi, Mudigere, Naumov, Yang 2020, "Compositional Embeddings Using Complementary Partitions
for Memory-Efficient Recommendation Systems", KDD (arXiv 1909.02107).
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, isqrt
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.evidence import Evidence
from pipeline.data.schema import Schema
from pipeline.embeddings.batch import Occurrences
from pipeline.embeddings.contract import FieldEmbedding
from pipeline.embeddings.cost import fill_limit, spent
from pipeline.embeddings.table import INIT_SD, Table
from pipeline.workflow.validation import Count

STEPS = 10_000  # the share of the kept rows is a multiple of 1 / STEPS
Operation = Literal["mult", "add"]


class Compositional(FieldEmbedding):
    """Value x of a field has the vector R[x mod c] times, or plus, Q[x // c]; a field without c has a plain table.

    Every value of a field has its own pair of rows. Ids are sorted by falling frequency, so no two of the c most
    frequent values share a row of R.

    Args:
        schema: F fields.
        dim: D.
        remainders: c of the composed fields, by name.
        operation: "mult" or "add".

    NOTE[DIFF]: rows are drawn from a normal distribution such that the composed vector has the standard deviation
    `INIT_SD`. The authors' code draws from the interval (sqrt(1/n), 1), which is not centred.

    Raises:
        ValueError: if a name, a remainder or the operation is wrong.
    """

    def __init__(self, schema: Schema, dim: int, remainders: Mapping[str, int], operation: Operation) -> None:
        super().__init__()
        schema.check_names(remainders)
        if operation not in ("mult", "add"):
            raise ValueError(f"qr: operation must be 'mult' or 'add', got {operation!r}")
        self.dim, self.operation = dim, operation
        cardinalities = schema.cardinalities
        moduli = np.array([remainders.get(field.name, field.cardinality) for field in schema.fields])
        if (moduli < 1).any() or (moduli > cardinalities).any():
            raise ValueError(f"qr: remainders must be 1 to the field's cardinality, got {dict(remainders)}")
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

    def vectors(self, occ: Occurrences) -> Tensor:
        lengths = torch.diff(occ.ends, prepend=occ.ends.new_zeros(1))
        first, modulus, begin, quotient_begin, composed = self.of_field.repeat_interleave(
            lengths, dim=1, output_size=len(occ.rows)
        )
        ids = occ.rows - first
        values = _looked_up(self.remainder, begin + ids % modulus)
        if not len(self.quotient.weight):
            return values
        places = composed.nonzero()[:, 0]
        quotients = _looked_up(self.quotient, (quotient_begin + ids // modulus)[places])
        if self.operation == "add":
            return values.index_add(0, places, quotients)
        return values * torch.ones_like(values).index_copy(0, places, quotients)

    def packed(self) -> dict[str, Tensor]:
        kept = {"table.remainder": self.remainder.weight.detach(), "table.quotient": self.quotient.weight.detach()}
        return {key: tensor for key, tensor in kept.items() if len(tensor)}


def _looked_up(table: Table, rows: Tensor) -> Tensor:
    """Rows (u,) in any order, repeated or not -> (u, D)."""
    distinct, place = torch.unique(rows, return_inverse=True)
    values: Tensor = table(distinct)
    return values.index_select(0, place)


def derive(evidence: Evidence, *, operation: Operation = "mult", threshold: Count = 200) -> Allocation:
    """The largest share of rows within the limit, the same for all fields.

    A field of n values has c = n times the share, but at least the square root of n, where c + n / c is smallest. If
    c + n / c is not below n, the field has a plain table.

    NOTE[DIFF]: if even the fewest rows of all fields exceed the limit at the full dimension, all fields have the widest
    dimension that fits. The paper has no budget.

    Args:
        operation: of two rows: product or sum.
        threshold: fields of more values than this are composed, as in the authors' code.

    Raises:
        TooFewBytes: if the limit is too small; the message says the fewest possible bytes.
    """
    schema = evidence.schema

    def make(steps: int, dim: int) -> Allocation:
        remainders = {}
        for field in schema.fields:
            n = field.cardinality
            c = max(ceil(n * steps / STEPS), isqrt(n - 1) + 1)
            if n > threshold and c + -(-n // c) < n:
                remainders[field.name] = c
        return evidence.allocation(dim, {"operation": operation, "remainders": remainders})

    def fits(dim: int) -> bool:
        return spent(build, schema, evidence.dim, make(1, dim)).bytes <= evidence.limit

    dim = next((d for d in range(evidence.dim, 1, -1) if fits(d)), 1)
    return fill_limit(evidence, build, lambda steps: make(steps, dim), STEPS)


def build(schema: Schema, dim: int, allocation: Allocation) -> Compositional:
    """Tables of the allocation's dimension; the backbone takes this width, so nothing is lifted."""
    return Compositional(schema, allocation.common_dim, **allocation.settings)
