"""LMA: values that occur in the same rows read the same numbers of one memory.

Desai, Pan, Sun, Chou, Shrivastava 2021, "Semantically Constrained Memory Allocation (SCMA) for Embedding in Efficient
Recommendation Systems", arXiv 2103.06124. Coordinate i of value v is M[A(v, i)], where M is one memory of m numbers.
Two values share a fraction f_A of their slots, and A is made such that f_A is about J ** H, where J is the Jaccard
similarity of the sets of training rows in which the two values occur.

A value's signature is k min-hashes of its set of rows, called keys, each stored in b bits. Each slot i has a choice of
H of the k keys, and A(v, i) is a hash of these H keys and of i. The same key of two values is equal with probability
p = J + (1 - J) / 2 ** b, so E[f_A] = p ** H, and disjoint values still share 2 ** (-b H) of their slots.

H keys have 2 ** (b H) combinations. If a slot has more cells than that, part of the memory is never read; so b grows
with m. The d slots depend on only k keys, so f_A has a larger variance than over d independent slots, where it would be
p ** H (1 - p ** H) / d. If n of the k keys are equal, where n is binomial, f_A is C(n, H) / C(k, H). For p = 0.5, k = 4
and H = 2, its standard deviation is 0.27; over 32 independent slots it would be 0.08.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from math import log2
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.evidence import Evidence, Problem
from pipeline.data.schema import PADDING, Schema
from pipeline.embeddings.batch import Occurrences
from pipeline.embeddings.contract import FieldEmbedding
from pipeline.embeddings.cost import fill_limit, spent
from pipeline.embeddings.hashed_memory import Memory, SlotHash, constants, mixed
from pipeline.workflow.validation import Count, Fraction

Bits = Literal[8, 16, 32]  # of a key
STORED = {8: np.uint8, 16: np.int16, 32: np.int32}


class MinHashMemory(FieldEmbedding):
    """A memory whose numbers are chosen by a value's signature, or by field and id if it has none (plain hashing).

    Args:
        schema: F fields.
        dim: D, slots of every value.
        size: m.
        signatures: (S, k) integers: the keys of the first ids of every field.
        signed: (F,) number of ids with a signature in each field; they add up to S.
        power: H, keys per slot.
        seed: of the hashes.
        sign: whether each number is multiplied by 1 or -1, by a hash of the same keys. Weinberger et al. 2009.

    NOTE[DIFF]: the choices of H keys alternate over the slots instead of being drawn for each slot. The mean of f_A is
    the same and its variance is smaller.

    Raises:
        ValueError: if ``signed`` does not fit the schema and the signatures, or if H is not from 1 to k.
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
            raise ValueError(
                f"signed must be one number for each of {list(schema.names)}, and add up to {number} signatures, "
                f"got {signed.tolist()}; derive the allocation again"
            )
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
        """(U, C) int64: for each of the C choices of H keys, the number from which its slots are hashed.

        Args:
            rows: (U,) rows of the table of all fields, ascending.
            ends: (F,) where the rows of each field end.
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

    def vectors(self, occ: Occurrences) -> Tensor:
        keys = self.keys(occ.rows, occ.ends).index_select(1, self.choice_of_slot)
        values: Tensor = self.memory(self.hash(keys, len(self.memory.weight)))
        return values * self.hash.signs(keys, values.dtype) if self.sign else values

    def packed(self) -> dict[str, Tensor]:
        return {"table": self.memory.weight.detach(), "signature": self.signatures, "index": self.signed}


def check_power(power: int, keys: int) -> None:
    if not 1 <= power <= keys:
        raise ValueError(f"lma: power must be 1 to the number of keys, {keys}, got {power}")


@dataclass(frozen=True)
class Signatures:
    """The min-hashes of the first ids of every field.

    Args:
        hashes: (S, k) int32.
        support: (S,) number of occurrences of each id in the sampled rows.
        signed: (F,) number of ids with min-hashes in each field.
    """

    hashes: np.ndarray
    support: np.ndarray
    signed: np.ndarray


def cut(known: Signatures, number: int) -> Signatures:
    """The signatures of the most frequent ids, at most ``number``; they are the first ids of each field."""
    if number >= len(known.support):
        return known
    least = np.sort(known.support)[::-1][number] + 1
    field_of, rank = _ranks(known.signed)
    signed = np.bincount(field_of[known.support >= least], minlength=len(known.signed))
    keep = rank < signed[field_of]
    return Signatures(known.hashes[keep], known.support[keep], signed)


def _ranks(signed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(S,) field and (S,) id of each signature, given the number of signed ids of each field (F,)."""
    field_of = np.repeat(np.arange(len(signed)), signed)
    return field_of, np.arange(len(field_of)) - (np.cumsum(signed) - signed)[field_of]


def find(problem: Problem, *, rows: Count = 125_000, support: Count = 2, keys: Count = 4) -> dict[str, np.ndarray]:
    """Min-hash the set of training rows in which each value occurs.

    The hash of a row has 63 bits, so that even values that occur in every other row have different minima. (A hash
    reduced to the number of rows, as published, gives all frequent values a minimum near 0.)

    Args:
        problem: the schema, the ids of the training rows, and the seed.
        rows: R, number of training rows to sample; all if there are fewer.
        support: s_min, least number of occurrences in the sample. In each field, as many ids are signed as have this
            support: the first ones, because ids are sorted by falling frequency.
        keys: k.

    Returns:
        The arrays of `Signatures`, by name.

    Raises:
        ValueError: if there are no training ids.
    """
    if problem.training_ids is None:
        raise ValueError(f"{problem.method} needs the ids of the training rows, got none; encode the data first")
    schema, ids, rng = problem.schema, problem.training_ids(), np.random.default_rng(problem.seed)
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

    hashes = np.empty((int(signed.sum()), keys), np.int32)
    own = torch.from_numpy(np.flatnonzero(chosen))
    absent = torch.from_numpy(counts[chosen] == 0)
    for k, salts in enumerate(constants(seed, 0, 2 * keys).view(keys, 2)):
        row_hashes = mixed(torch.arange(len(ids)) + salts[0]) & (2**63 - 1)
        least = torch.full((schema.num_rows,), 2**63 - 1).scatter_reduce_(0, values, row_hashes[documents], "amin")
        # A value that occurs in no sampled row is similar to no other.
        key = torch.where(absent, mixed(own + salts[1]), mixed(least[own] + salts[1]))
        hashes[:, k] = (key >> 32).numpy()
    return vars(Signatures(hashes, counts[chosen], signed))


def derive(
    evidence: Evidence, *, power: Count = 2, bits: Bits | None = None, share: Fraction = 0.25, sign: bool = False
) -> Allocation:
    """Signatures and a memory that together fill the limit.

    NOTE[DIFF]: the published code stores every slot of every value in 8 bytes, twice the bytes of the tables that it
    replaces, and counts only the memory. Here signatures are stored instead of slots, and they are counted.

    Args:
        evidence: the signatures and the limit.
        power: H.
        bits: b; None for the fewest with which H keys have at least twice as many combinations as a slot has cells.
        share: of the limit, for signatures. If the signatures of all values with enough support exceed it, only the
            most frequent values keep theirs.
        sign: see `MinHashMemory`.

    Raises:
        ValueError: if H is not from 1 to k.
        TooFewBytes: if the limit is too small; the message says the fewest possible bytes.
    """
    schema, dim, limit = evidence.schema, evidence.dim, evidence.limit
    known = Signatures(**evidence.arrays)
    check_power(power, known.hashes.shape[1])
    chosen = bits or _bits(min(limit // 4, schema.num_rows * dim), dim, power)

    def make(size: int, kept: Signatures) -> Allocation:
        settings = {"size": size, "power": power, "seed": evidence.seed, "sign": sign}
        arrays = {"signatures": kept.hashes.astype(STORED[chosen]), "signed": kept.signed.astype(np.int32)}
        return evidence.allocation(dim, settings, arrays)

    least = spent(build, schema, dim, make(1, cut(known, 0))).bytes  # needed in any case
    free = max(0, limit - least)
    kept = cut(known, int(share * free) // (known.hashes.shape[1] * chosen // 8))
    return fill_limit(evidence, build, lambda size: make(size, kept), schema.num_rows * dim)


def _bits(cells: int, dim: int, power: int) -> Bits:
    """b: the fewest bits with which H keys have at least twice as many combinations as a slot has cells, m / d."""
    needed = log2(max(2, cells / dim)) + 1
    return 8 if 8 * power >= needed else 16 if 16 * power >= needed else 32


def build(schema: Schema, dim: int, allocation: Allocation) -> MinHashMemory:
    arrays: Any = allocation.arrays  # together with the settings, all keywords
    return MinHashMemory(schema, allocation.common_dim, **allocation.settings, **arrays)


def permuted(allocation: Allocation, seed: int) -> Allocation:
    """The null control: every signed value gets the signature of another value of its field; see `permutation`.

    Only the signatures that LMA keeps are permuted, so values share as many numbers as in LMA.
    """
    arrays = allocation.arrays
    others = permutation(arrays["signed"], np.random.default_rng(seed))
    return replace(allocation, arrays={**arrays, "signatures": arrays["signatures"][others]})


def permutation(signed: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(S,) the position of the signature that each signed value gets in the null control.

    All signatures stay in their field, so the same sets of slots exist and as many of them are shared, but between
    unrelated values. Signatures move within octaves of the rank by frequency (ids 1 to 2, 3 to 6, 7 to 14, ...), so a
    value gets the signature of a value of similar frequency. Id 0, the unknown value, keeps its own.

    Args:
        signed: (F,) number of signatures of each field.
        rng: source of the random order within octaves.
    """
    number = int(signed.sum())
    field_of, rank = _ranks(signed)
    octave = np.log2(rank + 1).astype(np.int64)
    last = signed[field_of] - 1
    octave -= (rank == last) & (rank > 1) & (rank + 1 == 2**octave)  # a value alone in its octave joins the one before
    order = np.lexsort((rng.random(number), octave, field_of))
    begins = np.ones(number, bool)
    begins[1:] = (np.diff(field_of[order]) != 0) | (np.diff(octave[order]) != 0)
    first = np.maximum.accumulate(np.where(begins, np.arange(number), 0))
    ends = np.append(begins[1:], True)
    following = np.where(ends, first, np.arange(number) + 1)  # the next in the octave; for the last one, the first
    chosen = np.empty(number, np.int64)
    chosen[order] = order[following]
    return chosen
