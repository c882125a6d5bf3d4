"""LMA's signatures: which values share how many of their numbers.

LMA: Desai, Pan, Sun, Chou, Shrivastava 2021, "Semantically Constrained Memory Allocation (SCMA) for Embedding in
Efficient Recommendation Systems", arXiv 2103.06124. Coordinate i of value v is M[A(v, i)], with one memory M of m
numbers. Two values share the fraction f_A of their slots; A is made such that f_A is about J ** H, where J is the
Jaccard similarity of the sets of training rows in which the two values occur.

The signature plan. A value has k min-hashes of its set, each kept in b bits. Slot i belongs to a choice of H of the k
keys, and A(v, i) is a hash of these H keys and of i. One key of two values is equal with probability
p = J + (1 - J) / 2 ** b, so E[f_A] = p ** H: 2 ** (-b H) is the floor below which disjoint values do not come. With
fewer than 2 ** (b H) combinations of keys than there are cells for a slot, part of the memory lies idle, which is why
b grows with m. As d slots depend on k keys alone, f_A varies more than over d independent slots, whose variance is
p ** H (1 - p ** H) / d: f_A is C(n, H) / C(k, H), n of k keys being equal, n binomial. For p = 0.5, k = 4 and H = 2 its
standard deviation is 0.27, where 32 independent slots would have 0.08.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from math import log2
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.budget import largest
from pipeline.allocation.evidence import Evidence
from pipeline.data.schema import PADDING, Schema
from pipeline.embeddings.batch import Occurrences, spread
from pipeline.embeddings.contract import FieldEmbedding
from pipeline.embeddings.cost import spent
from pipeline.embeddings.hashed_memory import Memory, SlotHash, common_dim, constants, mixed
from pipeline.embeddings.mixed import MixedTables
from pipeline.workflow.plug import Least

Bits = Literal[8, 16, 32]  # of a key
STORED = {8: np.uint8, 16: np.int16, 32: np.int32}


class SignatureMemory(FieldEmbedding):
    """LMA: slots of a value from its signature, of a value without one from its field and id (plain hashing).

    Args:
        schema: F fields.
        dim: D, slots of every value.
        size: m.
        signatures: (S, k) of the first ids of every field, whole numbers.
        signed: (F,) how many ids of each field have one; they add up to S.
        power: H, keys that a slot looks at.
        seed: of the hashes.
        sign: whether the number is taken times 1 or -1, by a hash of the same keys. Weinberger et al. 2009.

    NOTE[DIFF]: the choices of H keys take turns over the slots instead of being drawn for every slot: the mean of
    f_A is the same and its variance smaller.
    """

    def __init__(
        self,
        schema: Schema,
        dim: int,
        size: int,
        signatures: np.ndarray,
        signed: np.ndarray,
        power: int,
        seed: int,
        sign: bool,
    ) -> None:
        super().__init__()
        number, keys = signatures.shape
        if signed.shape != (len(schema),) or signed.sum() != number or (signed > schema.cardinalities).any():
            raise ValueError(f"{number} signatures do not fit {signed.tolist()} signed ids of {list(schema.names)}")
        check_power(power, keys)
        self.dim, self.power, self.sign = dim, power, sign
        self.memory = Memory(size)
        self.hash = SlotHash(dim, seed, 0)
        self.register_buffer("signatures", torch.from_numpy(signatures.copy()))
        self.register_buffer("signed", torch.from_numpy(signed.astype(np.int32)))
        self.register_buffer("first_rows", torch.from_numpy(schema.first_rows), persistent=False)
        choices = list(itertools.combinations(range(keys), power))
        self.register_buffer("choices", torch.tensor(choices, device="cpu"), persistent=False)
        self.register_buffer("choice_of_slot", torch.arange(dim, device="cpu") % len(choices), persistent=False)
        self.register_buffer("salts", constants(seed, 2, 1 + power), persistent=False)

    signatures: Tensor
    signed: Tensor
    first_rows: Tensor
    choices: Tensor
    choice_of_slot: Tensor
    salts: Tensor

    def keys(self, rows: Tensor, ends: Tensor) -> Tensor:
        """(U, C) what the slots of each of the C choices of keys are hashed from.

        Args:
            rows: (U,) rows of the table of all fields, ascending.
            ends: (F,) where each field's rows end.
        """
        plain = mixed(rows + self.salts[0])[:, None].expand(-1, len(self.choices))
        if not len(self.signatures):
            return plain
        lengths = torch.diff(ends, prepend=ends.new_zeros(1))
        starts = self.signed.cumsum(0) - self.signed
        limits = torch.stack([self.first_rows, self.signed.long(), starts]).repeat_interleave(
            lengths, dim=1, output_size=len(rows)
        )
        ids = rows - limits[0]
        has_one = ids < limits[1]
        stored = self.signatures.index_select(0, torch.where(has_one, ids + limits[2], 0)).long()
        chosen = stored[:, self.choices]  # (U, C, H)
        folded = chosen.new_zeros(())
        for h in range(self.power):
            folded = mixed((folded ^ self.salts[1 + h]) + chosen[..., h])
        return torch.where(has_one[:, None], folded, plain)

    def forward(self, occ: Occurrences) -> Tensor:
        """Occurrences -> (B, F, D)."""
        keys = self.keys(occ.rows, occ.ends).index_select(1, self.choice_of_slot)
        values: Tensor = self.memory(self.hash(keys, len(self.memory.weight)))
        if self.sign:
            values = values * self.hash.signs(keys, values.dtype)
        return spread(values, occ)

    def packed(self) -> dict[str, Tensor]:
        return {"table": self.memory.weight.detach(), "signature": self.signatures, "index": self.signed}


def check_power(power: int, keys: int) -> None:
    if not 1 <= power <= keys:
        raise ValueError(f"lma: power, the keys that a slot looks at, must be 1 to {keys=}, however: {power=}")


@dataclass(frozen=True)
class Observed:
    """Min-hashes of the first ids of every field.

    Args:
        hashes: (S, k) int32.
        support: (S,) how often each of these ids occurs in the sampled rows, and
        signed: (F,) how many ids of each field have them.
    """

    hashes: np.ndarray
    support: np.ndarray
    signed: np.ndarray


def cut(seen: Observed, number: int) -> Observed:
    """The same for at most ``number`` ids, those that occur most: as many of each field as occur so often."""
    if number >= len(seen.support):
        return seen
    least = np.sort(seen.support)[::-1][number] + 1
    field_of, rank = _ranks(seen.signed)
    signed = np.bincount(field_of[seen.support >= least], minlength=len(seen.signed))
    keep = rank < signed[field_of]
    return Observed(seen.hashes[keep], seen.support[keep], signed)


def _ranks(signed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(S,) field and (S,) id of each signature, for (F,) signed ids of each field."""
    field_of = np.repeat(np.arange(len(signed)), signed)
    return field_of, np.arange(len(field_of)) - (np.cumsum(signed) - signed)[field_of]


def observe(
    schema: Schema,
    ids: np.ndarray,
    rng: np.random.Generator,
    *,
    rows: Annotated[int, Least(1)] = 125_000,
    support: Annotated[int, Least(1)] = 2,
    keys: Annotated[int, Least(1)] = 4,
) -> dict[str, np.ndarray]:
    """Min-hashes of the values' sets of rows.

    Each hash of a row has 63 bits, so that even a value which occurs in every other row has a minimum of its own. (A
    hash reduced to the number of rows, as published, gives all frequent values a minimum near 0.)

    Args:
        ids: (n, S) of the training rows.
        rows: R, how many of them are sampled; all if there are fewer.
        support: s_min, how often a value has to occur in these. As ids are sorted by falling frequency, as many of
            the first ids of a field are signed as values reach that.
        keys: k.

    Returns:
        the arrays of an `Observed`.
    """
    if keys < 1 or rows < 1 or support < 1:
        raise ValueError(f"lma: keys, rows and support must be at least 1, however: {keys=}, {rows=}, {support=}")
    if len(ids) > rows:
        ids = ids[np.sort(rng.choice(len(ids), rows, replace=False))]
    seed = int(rng.integers(2**62))
    present = torch.from_numpy(ids != PADDING)
    values = (torch.from_numpy(ids).long() + torch.from_numpy(schema.first_rows[schema.slot_fields]))[present]
    documents = torch.arange(len(ids))[:, None].expand(present.shape)[present]
    counts = torch.bincount(values, minlength=schema.num_rows).numpy()
    field_of, rank = _ranks(schema.cardinalities)
    signed = np.bincount(field_of[counts >= support], minlength=len(schema))
    chosen = rank < signed[field_of]

    found = np.empty((int(signed.sum()), keys), np.int32)
    own = torch.from_numpy(np.flatnonzero(chosen))
    alone = torch.from_numpy(counts[chosen] == 0)
    for k, salts in enumerate(constants(seed, 0, 2 * keys).view(keys, 2)):
        of_rows = mixed(torch.arange(len(ids)) + salts[0]) & (2**63 - 1)
        least = torch.full((schema.num_rows,), 2**63 - 1).scatter_reduce_(0, values, of_rows[documents], "amin")
        # One that occurs in no sampled row is like no other.
        key = torch.where(alone, mixed(own + salts[1]), mixed(least[own] + salts[1]))
        found[:, k] = (key >> 32).numpy()
    return vars(Observed(found, counts[chosen], signed))


def permutation(signed: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(S,) whose signature each value gets in the null control: that of another value of its field.

    All signatures stay in their field, so the same sets of slots exist and as many of them are shared; but who shares
    with whom has no meaning. They move within octaves of the rank by frequency (ids 1 to 2, 3 to 6, 7 to 14, ...), so
    that a value gets the signature of one about as frequent. Id 0, the unknown, keeps its own.

    Args:
        signed: (F,) number of signatures of each field.
    """
    number = int(signed.sum())
    field_of, rank = _ranks(signed)
    octave = np.log2(rank + 1).astype(np.int64)
    last = signed[field_of] - 1
    octave -= (rank == last) & (rank > 1) & (rank + 1 == 2**octave)  # it would be alone
    order = np.lexsort((rng.random(number), octave, field_of))
    begins = np.ones(number, bool)
    begins[1:] = (np.diff(field_of[order]) != 0) | (np.diff(octave[order]) != 0)
    first = np.maximum.accumulate(np.where(begins, np.arange(number), 0))
    ends = np.append(begins[1:], True)
    following = np.where(ends, first, np.arange(number) + 1)  # the next of its octave, of the last one the first
    chosen = np.empty(number, np.int64)
    chosen[order] = order[following]
    return chosen


def allocation(
    method: str, given: Evidence, *, power: int, bits: Bits | None, share: float, sign: bool, permuted: bool = False
) -> Allocation:
    """Signatures and memory that fill the limit together.

    NOTE[DIFF]: the published code keeps every slot of every value in 8 bytes, twice what the tables take that are to
    be saved, and counts the memory alone. Here signatures are kept in place of slots, and are counted.

    Args:
        method: name of the method that builds it.
        given: with what `observe` found.
        power: H.
        bits: b; None for the fewest with which H keys have twice as many combinations as a slot has cells.
        share: of the limit that signatures may take. If those of all values with enough support take more, the
            support that it needs is raised until they do not.
        sign: see `SignatureMemory`.
        permuted: the null control, see `permutation`: of what is kept, so that it shares as much.
    """
    if not 0 <= share < 1:
        raise ValueError(f"{method}: share of the limit for signatures must be from 0 to below 1, however: {share=}")
    schema, dim, limit = given.schema, given.dim, given.limit
    seen = Observed(**given.found)
    check_power(power, seen.hashes.shape[1])
    chosen = bits or _bits(min(limit // 4, schema.num_rows * dim), dim, power)

    def made(size: int, kept: Observed) -> Allocation:
        settings = {"size": size, "power": power, "seed": given.seed, "sign": sign}
        arrays = {"signatures": kept.hashes.astype(STORED[chosen]), "signed": kept.signed.astype(np.int32)}
        return Allocation(method, dict.fromkeys(schema.names, dim), settings, arrays)

    def size_of(size: int, kept: Observed) -> int:
        return spent(build, schema, dim, made(size, kept)).bytes

    none = cut(seen, 0)
    free = max(0, limit - size_of(1, none))  # the rest is needed in any case
    kept = cut(seen, int(share * free) // (seen.hashes.shape[1] * chosen // 8))
    if permuted:
        others = permutation(kept.signed, np.random.default_rng(given.seed))
        kept = replace(kept, hashes=kept.hashes[others])
    most = schema.num_rows * dim
    return made(largest(lambda size: size_of(size, kept), most, limit, method), kept)


def _bits(cells: int, dim: int, power: int) -> Bits:
    """b: the fewest bits of a key with which H keys have twice as many combinations as a slot has cells, m / d."""
    needed = log2(max(2, cells / dim)) + 1
    return 8 if 8 * power >= needed else 16 if 16 * power >= needed else 32


def build(schema: Schema, dim: int, allocation: Allocation) -> FieldEmbedding:
    if not allocation.settings:
        return MixedTables(schema, allocation.dims, dim)
    arrays: Any = allocation.arrays  # beside numbers among the keywords
    return SignatureMemory(schema, common_dim(allocation), **allocation.settings, **arrays)
