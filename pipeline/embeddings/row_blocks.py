"""Several dimensions within a field: its rows are cut into blocks by frequency, and each block has its own dimension.

Ids of a field are sorted by falling frequency, so a block is a range of ids. Blocks are stored like the fields of
`MixedTables`: a block of dimension d has a table and, if d < D, a matrix that lifts its rows to D coordinates (Ginart
et al. 2021, Joglekar et al. 2020). The rows of a block of dimension 0 share one learned vector of D numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
import pydantic
import torch
from torch import Tensor, nn

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.budget import NO_CANDIDATE
from pipeline.allocation.evidence import Evidence, Problem
from pipeline.allocation.knapsack import within_budget
from pipeline.data.schema import Field, Schema
from pipeline.embeddings.batch import Occurrences, placed
from pipeline.embeddings.contract import FieldEmbedding
from pipeline.embeddings.cost import measured
from pipeline.embeddings.mixed import MixedTables
from pipeline.embeddings.table import INIT_SD

LEAST_ROWS = 16  # of a block; fewer rows are not worth a matrix
Blocks = tuple[tuple[int, int], ...]  # (rows, dimension) of a field's blocks, the most frequent rows first
Ratio = Annotated[float, pydantic.Field(gt=1)]  # the option for ``ratio`` of `block_rows`


class BlockTables(FieldEmbedding):
    """One table per block, lifted to a common width D.

    Args:
        schema: F fields.
        blocks: of each field, by name; their rows add up to its cardinality, and some block has a dimension above 0.
        dim: D.

    Raises:
        ValueError: if the blocks of a field are not like that.
    """

    def __init__(self, schema: Schema, blocks: Mapping[str, Blocks], dim: int) -> None:
        super().__init__()
        for field in schema.fields:
            _check(field, blocks.get(field.name), dim)
        self.dim = dim
        every = [block for name in schema.names for block in blocks[name]]
        rows, dims = np.array(every, dtype=np.int64).T
        ends, own = np.cumsum(rows), dims > 0
        inner = np.ones(len(every), dtype=bool)
        inner[np.cumsum([len(blocks[name]) for name in schema.names]) - 1] = False  # the last blocks of fields
        parts = Schema(tuple(Field(str(i), int(r)) for i, r in enumerate(rows[own])))
        self.tables = MixedTables(parts, {str(i): int(d) for i, d in enumerate(dims[own])}, dim)
        self.shared = None if own.all() else nn.Parameter(torch.randn(int((~own).sum()), dim) * INIT_SD)
        self.register_buffer("cuts", torch.tensor(ends[inner], dtype=torch.int32), persistent=False)
        self.register_buffer("bounds", torch.tensor(ends), persistent=False)
        self.register_buffer("own", torch.tensor(own), persistent=False)
        # For each block: how many rows before it have no row in a table, and which shared vector its own rows have.
        self.register_buffer("without", torch.tensor(np.cumsum(np.where(own, 0, rows))), persistent=False)
        self.register_buffer("sharing", torch.tensor(np.cumsum(~own) - 1), persistent=False)

    cuts: Tensor
    bounds: Tensor
    own: Tensor
    without: Tensor
    sharing: Tensor

    def vectors(self, occ: Occurrences) -> Tensor:
        ends = torch.searchsorted(occ.rows, self.bounds)
        if self.shared is None:
            return self.tables.of_rows(occ.rows, ends.int())
        lengths = torch.diff(ends, prepend=ends.new_zeros(1))
        block = torch.arange(len(ends), device=ends.device).repeat_interleave(lengths, output_size=len(occ.rows))
        own = self.own[block]
        mine, others = own.nonzero()[:, 0], (~own).nonzero()[:, 0]
        rows = occ.rows[mine] - self.without[block[mine]]
        values = self.tables.of_rows(rows, lengths[self.own].cumsum(0).int())
        constant = nn.functional.embedding(self.sharing[block[others]], self.shared)
        return placed(torch.cat([mine, others]), values, constant)

    def packed(self) -> dict[str, Tensor]:
        kept = self.tables.packed()
        if self.shared is not None:
            kept["table.shared"] = self.shared.detach()
        if len(self.cuts):
            kept["index.cuts"] = self.cuts
        return kept


def _check(field: Field, blocks: Blocks | None, dim: int) -> None:
    name = f"blocks of field {field.name!r}"
    if not blocks or sum(rows for rows, _ in blocks) != field.cardinality:
        raise ValueError(f"{name} must add up to its {field.cardinality} rows, got {blocks}")
    if any(rows < 1 or not 0 <= d <= dim for rows, d in blocks) or not any(d for _, d in blocks):
        raise ValueError(f"{name} must have rows, and dims from 0 to {dim=} that are not all 0, got {blocks}")


def build(schema: Schema, dim: int, allocation: Allocation) -> BlockTables:
    """The tables of an allocation from `allocate`; a field without blocks in the settings has one dimension."""
    cut = allocation.settings.get("blocks", {})
    blocks = {
        field.name: tuple((int(rows), int(d)) for rows, d in cut[field.name])
        if field.name in cut
        else ((field.cardinality, allocation.dims[field.name]),)
        for field in schema.fields
    }
    return BlockTables(schema, blocks, dim)


def allocate(problem: Problem, blocks: Sequence[Blocks]) -> Allocation:
    """The allocation with these blocks of each field; a field's dimension is that of its widest block."""
    names = problem.schema.names
    dims = {name: max(d for _, d in field) for name, field in zip(names, blocks, strict=True)}
    cut = {name: field for name, field in zip(names, blocks, strict=True) if len(field) > 1 and dims[name]}
    return problem.allocation(dims, {"blocks": {name: list(map(list, field)) for name, field in cut.items()}})


def block_rows(schema: Schema, blocks: int, ratio: float) -> np.ndarray:
    """(F, S) int64 number of rows in each block of every field, most frequent first; 0 where a field has fewer blocks.

    The ends of the blocks are geometric: each is ``ratio`` times the end before it, and the last is the cardinality. A
    block of fewer than `LEAST_ROWS` rows is joined with the next one.

    Args:
        schema: F fields.
        blocks: S, the largest number of blocks.
        ratio: of the ends of two successive blocks.

    Raises:
        ValueError: if there are no blocks, or if the ratio is not above 1.
    """
    if blocks < 1 or ratio <= 1:
        raise ValueError(f"a field must be cut into at least one block, with a ratio above 1, got {blocks=}, {ratio=}")
    table = np.zeros((len(schema), blocks), dtype=np.int64)
    for f, n in enumerate(schema.cardinalities.tolist()):
        ends = [0]
        for k in range(blocks - 1, 0, -1):
            end = round(n / ratio**k)
            if end - ends[-1] >= LEAST_ROWS:
                ends.append(end)
        table[f, : len(ends)] = np.diff([*ends, n])
    return table


def merged(rows: Sequence[int], dims: Sequence[int]) -> Blocks:
    """The blocks that have rows, with neighbours of the same dimension joined."""
    blocks: list[tuple[int, int]] = []
    for r, d in zip(rows, dims, strict=True):
        if r and blocks and blocks[-1][1] == d:
            blocks[-1] = (blocks[-1][0] + int(r), int(d))
        elif r:
            blocks.append((int(r), int(d)))
    return tuple(blocks)


def padded(choices: Sequence[Sequence[Sequence[int]]]) -> np.ndarray:
    """The choices of F fields, S numbers each, as one array (F, N, S) int64; -1 where a field has fewer choices."""
    shape = len(choices), max(map(len, choices)), max(len(offered[0]) for offered in choices)
    table = np.full(shape, -1, dtype=np.int64)
    for f, offered in enumerate(choices):
        table[f, : len(offered), : len(offered[0])] = offered
    return table


def choice_prices(rows: np.ndarray, choices: np.ndarray, dim: int) -> np.ndarray:
    """Bytes of every choice of every field, measured block by block on tables of these blocks.

    Args:
        rows: (F, S), from `block_rows`.
        choices: (F, N, S) dims of the blocks, from `padded`; a choice of zeros drops the field and is free.
        dim: D.

    Returns:
        (F, N) int64; `NO_CANDIDATE` where a field has fewer than N choices.
    """
    known: dict[Blocks, int] = {}

    def price(*blocks: tuple[int, int]) -> int:
        if blocks not in known:
            field = Field("price", sum(r for r, _ in blocks))
            known[blocks] = measured(lambda: BlockTables(Schema((field,)), {"price": blocks}, dim)).bytes
        return known[blocks]

    # Each block is measured together with this one, because a field cannot consist of one block of dimension 0.
    before = (1, dim)
    cut = price(before, before) - 2 * price(before)
    table = np.full(choices.shape[:2], NO_CANDIDATE, dtype=np.int64)
    for f, n in np.argwhere(choices[:, :, 0] >= 0).tolist():
        blocks = merged(rows[f].tolist(), choices[f, n].tolist())
        each = sum(price(before, block) - price(before) for block in blocks)
        table[f, n] = each - cut if any(d for _, d in blocks) else 0
    return table


def pick(evidence: Evidence, rows: np.ndarray, choices: np.ndarray, scores: np.ndarray) -> Allocation:
    """The allocation with the largest sum of scores, within the budget if there is one.

    Args:
        evidence: the budget.
        rows, choices: of `choice_prices`.
        scores: (F, N); -inf where a field has fewer than N choices.

    Raises:
        TooFewBytes: if no choice fits the budget; the message says the fewest possible bytes.
    """
    if evidence.budget is None:
        chosen = scores.argmax(1)
    else:
        chosen = within_budget(scores, choice_prices(rows, choices, evidence.dim), evidence.budget)
    return allocate(evidence, [merged(rows[f].tolist(), choices[f, n].tolist()) for f, n in enumerate(chosen)])
