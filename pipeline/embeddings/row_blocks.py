"""Tables of several dimensions within a field: its rows are cut into blocks by frequency, each of its own dimension.

Ids of a field are sorted by falling frequency, so a block is a range of them. To the tables a block is what a field is
to `MixedTables`: it has rows, a dimension d, and, where d < D, a matrix of its own that lifts them to D coordinates
(Ginart et al. 2021, Joglekar et al. 2020). The rows of a block of dimension 0 share one learned vector of D numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.budget import NO_CANDIDATE
from pipeline.allocation.knapsack import within_budget
from pipeline.data.schema import Field, Schema
from pipeline.embeddings.batch import Occurrences, placed, spread
from pipeline.embeddings.contract import FieldEmbedding
from pipeline.embeddings.cost import cost
from pipeline.embeddings.mixed import MixedTables
from pipeline.embeddings.table import INIT_SD

LEAST_ROWS = 16  # of a block: fewer are not worth a matrix of their own
Blocks = tuple[tuple[int, int], ...]  # (rows, dimension), the most frequent rows first


class BlockTables(FieldEmbedding):
    """One table per block, lifted to a common width D.

    Args:
        schema: F fields.
        blocks: of each field; their rows add up to its cardinality, and some block has a dimension above 0.
        dim: D.
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
        inner[np.cumsum([len(blocks[name]) for name in schema.names]) - 1] = False  # a field's last block ends with it
        parts = Schema(tuple(Field(str(i), int(r)) for i, r in enumerate(rows[own])))
        self.tables = MixedTables(parts, {str(i): int(d) for i, d in enumerate(dims[own])}, dim)
        self.shared = None if own.all() else nn.Parameter(torch.randn(int((~own).sum()), dim) * INIT_SD)
        self.register_buffer("cuts", torch.tensor(ends[inner], dtype=torch.int32), persistent=False)
        self.register_buffer("bounds", torch.tensor(ends), persistent=False)
        self.register_buffer("own", torch.tensor(own), persistent=False)
        # Of each block: the rows before it that have no row in a table, and the vector its rows share if it has none.
        self.register_buffer("without", torch.tensor(np.cumsum(np.where(own, 0, rows))), persistent=False)
        self.register_buffer("sharing", torch.tensor(np.cumsum(~own) - 1), persistent=False)

    cuts: Tensor
    bounds: Tensor
    own: Tensor
    without: Tensor
    sharing: Tensor

    def forward(self, occ: Occurrences) -> Tensor:
        """Occurrences -> (B, F, D)."""
        ends = torch.searchsorted(occ.rows, self.bounds)
        if self.shared is None:
            return spread(self.tables.of_rows(occ.rows, ends.int()), occ)
        lengths = torch.diff(ends, prepend=ends.new_zeros(1))
        block = torch.arange(len(ends), device=ends.device).repeat_interleave(lengths, output_size=len(occ.rows))
        own = self.own[block]
        mine, others = own.nonzero()[:, 0], (~own).nonzero()[:, 0]
        rows = occ.rows[mine] - self.without[block[mine]]
        values = self.tables.of_rows(rows, lengths[self.own].cumsum(0).int())
        constant = nn.functional.embedding(self.sharing[block[others]], self.shared)
        return spread(placed(torch.cat([mine, others]), values, constant), occ)

    def packed(self) -> dict[str, Tensor]:
        kept = self.tables.packed()
        if self.shared is not None:
            kept["table.shared"] = self.shared.detach()
        if len(self.cuts):
            kept["index.cuts"] = self.cuts
        return kept


def _check(field: Field, blocks: Blocks | None, dim: int) -> None:
    if not blocks or sum(rows for rows, _ in blocks) != field.cardinality:
        raise ValueError(
            f"blocks of field {field.name!r} must have its {field.cardinality} rows together, however: {blocks}"
        )
    if any(rows < 1 or not 0 <= d <= dim for rows, d in blocks) or not any(d for _, d in blocks):
        raise ValueError(
            f"blocks of field {field.name!r} must have rows, dims from 0 to {dim=}, and not all 0, however: {blocks}"
        )


def build(schema: Schema, dim: int, allocation: Allocation) -> BlockTables:
    """What `allocate` has written; a field without blocks in the settings has one dimension."""
    cut = allocation.settings.get("blocks", {})
    blocks = {
        field.name: tuple((int(rows), int(d)) for rows, d in cut[field.name])
        if field.name in cut
        else ((field.cardinality, allocation.dims[field.name]),)
        for field in schema.fields
    }
    return BlockTables(schema, blocks, dim)


def allocate(method: str, schema: Schema, blocks: Sequence[Blocks]) -> Allocation:
    """The allocation that `build` makes these blocks of; a field's dimension is that of its largest block."""
    dims = {name: max(d for _, d in field) for name, field in zip(schema.names, blocks, strict=True)}
    cut = {name: field for name, field in zip(schema.names, blocks, strict=True) if len(field) > 1 and dims[name]}
    return Allocation(method, dims, {"blocks": {name: list(map(list, field)) for name, field in cut.items()}})


def sizes(schema: Schema, blocks: int, ratio: float) -> np.ndarray:
    """Rows of the blocks of every field, most frequent first: (F, S) int64 with S = ``blocks``, 0 where it has fewer.

    Each but the first ends ``ratio`` times as far from the top as the one before it; blocks of fewer than `LEAST_ROWS`
    rows belong to the next.
    """
    if blocks < 1 or ratio <= 1:
        raise ValueError(f"a field is cut into at least one block with a ratio above 1, however: {blocks=}, {ratio=}")
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
    """Blocks with neighbours of one dimension joined, and without those that have no rows."""
    blocks: list[tuple[int, int]] = []
    for r, d in zip(rows, dims, strict=True):
        if r and blocks and blocks[-1][1] == d:
            blocks[-1] = (blocks[-1][0] + int(r), int(d))
        elif r:
            blocks.append((int(r), int(d)))
    return tuple(blocks)


def padded(choices: Sequence[Sequence[Sequence[int]]]) -> np.ndarray:
    """For each of F fields a list of choices, each of S numbers -> (F, N, S) int64, -1 where a field has fewer."""
    shape = len(choices), max(map(len, choices)), max(len(offered[0]) for offered in choices)
    table = np.full(shape, -1, dtype=np.int64)
    for f, offered in enumerate(choices):
        table[f, : len(offered), : len(offered[0])] = offered
    return table


def prices(rows: np.ndarray, choices: np.ndarray, dim: int) -> np.ndarray:
    """Bytes of every choice of every field, measured block by block on what is built of it.

    Args:
        rows: (F, S), as of `sizes`.
        choices: (F, N, S) dims of the blocks, as of `padded`; 0 for all of them drops the field and is free.
        dim: D.

    Returns:
        (F, N) int64; `NO_CANDIDATE` where a field has fewer than N choices.
    """
    measured: dict[Blocks, int] = {}

    def price(*blocks: tuple[int, int]) -> int:
        if blocks not in measured:
            field = Field("price", sum(r for r, _ in blocks))
            with torch.device("meta"):
                measured[blocks] = cost(BlockTables(Schema((field,)), {"price": blocks}, dim).packed()).bytes
        return measured[blocks]

    before = (1, dim)  # behind which each block is measured, for one without rows of its own cannot stand alone
    cut = price(before, before) - 2 * price(before)
    table = np.full(choices.shape[:2], NO_CANDIDATE, dtype=np.int64)
    for f, n in np.argwhere(choices[:, :, 0] >= 0).tolist():
        blocks = merged(rows[f].tolist(), choices[f, n].tolist())
        each = sum(price(before, block) - price(before) for block in blocks)
        table[f, n] = each - cut if any(d for _, d in blocks) else 0
    return table


def pick(
    method: str, schema: Schema, dim: int, rows: np.ndarray, choices: np.ndarray, scores: np.ndarray, budget: int | None
) -> Allocation:
    """The allocation with the largest sum of scores, within the budget if there is one.

    Args:
        rows, choices: as of `prices`.
        scores: (F, N); -inf where a field has fewer than N choices.
        budget: bytes.

    Raises:
        TooFewBytes: if no choice is within the budget; says the least bytes that are possible.
    """
    chosen = scores.argmax(1) if budget is None else within_budget(scores, prices(rows, choices, dim), budget)
    blocks = [merged(rows[f].tolist(), choices[f, n].tolist()) for f, n in enumerate(chosen)]
    return allocate(method, schema, blocks)
