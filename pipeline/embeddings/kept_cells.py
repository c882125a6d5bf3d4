"""Tables of which only some cells are kept: which ones, how they are trained, and how they are stored."""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
import torch
from torch import Tensor

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.budget import TooFewBytes
from pipeline.allocation.evidence import Evidence
from pipeline.data.schema import Schema
from pipeline.embeddings.batch import Occurrences, spread
from pipeline.embeddings.bitmap import Bitmap, Form, Packed
from pipeline.embeddings.contract import FieldEmbedding
from pipeline.embeddings.cost import cost
from pipeline.embeddings.table import Table

BLOCK_ROWS = 16  # rows for which one count says how many cells come before them


class Layout:
    """How a table is stored of which only some cells are kept: the smallest of three forms.

    * ``bitmap``: a bit for every cell, and the kept numbers row by row;
    * ``csr``: the number of kept cells of every row and the column of each, and the kept numbers row by row;
    * ``dense``: all numbers, for tables of which so much is kept that an index would cost more.

    Which one is the smallest, and its size, depend on the number of kept cells alone, hence are known before training.

    Args:
        rows: V.
        dim: D.
        kept: cells that are kept, up to V * D and below 2**31.
    """

    def __init__(self, rows: int, dim: int, kept: int) -> None:
        if not 1 <= kept <= rows * dim or kept >= 2**31:
            raise ValueError(
                f"a table of {rows:,} x {dim} cells cannot keep {kept:,} of them; keep 1 to {rows * dim:,}"
            )
        self.rows, self.dim, self.kept = rows, dim, kept
        count = torch.uint8 if dim < 256 else torch.int16
        column = torch.uint8 if dim <= 256 else torch.int16
        values = {"table.cells": (kept, torch.float32)}
        bitmap = {f"index.{name}": size for name, size in Bitmap.form(rows * dim).items()}
        csr = {
            "index.columns": (kept, column),
            "index.counts": (rows, count),
            "index.before": (-(-rows // BLOCK_ROWS), torch.int32),
        }
        forms: dict[str, Form] = {
            "dense": {"table.cells": (rows * dim, torch.float32)},
            "csr": values | csr,
            "bitmap": values | bitmap,
        }
        self.name = min(forms, key=lambda name: cost(_empty(forms[name])).bytes)
        self.form = forms[self.name]

    def measured(self) -> dict[str, Tensor]:
        """What `pack` will give, on the ``meta`` device."""
        return _empty(self.form)

    def pack(self, values: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """values (V, D) float32, mask (V, D) bool with `kept` ones -> what is stored."""
        if self.name == "dense":
            return {"table.cells": (values * mask).flatten()}
        cells = {"table.cells": values[mask]}
        if self.name == "bitmap":
            bitmap = Bitmap.of(mask.cpu().numpy().ravel())
            return cells | {"index.bits": bitmap.words.to(mask.device), "index.before": bitmap.before.to(mask.device)}
        counts = mask.sum(1)
        upto = counts.cumsum(0) - counts
        return cells | {
            "index.columns": mask.nonzero()[:, 1].to(self.form["index.columns"][1]),
            "index.counts": counts.to(self.form["index.counts"][1]),
            "index.before": upto[::BLOCK_ROWS].int(),
        }

    def take(self, packed: Packed, rows: Tensor) -> Tensor:
        """Row numbers (U,) -> (U, D), from what is stored; no other row is expanded."""
        values = packed["table.cells"]
        columns = torch.arange(self.dim, device=rows.device)
        if self.name == "dense":
            return values.view(self.rows, self.dim).index_select(0, rows)
        if self.name == "bitmap":
            bitmap = Bitmap(packed["index.bits"], packed["index.before"])
            mask = bitmap.at(rows[:, None] * self.dim + columns)
            places = bitmap.rank(rows * self.dim)[:, None] + mask.cumsum(1) - 1
            return torch.where(mask, values[places.clamp(0, self.kept - 1)], 0.0)
        block = rows // BLOCK_ROWS
        window = block[:, None] * BLOCK_ROWS + torch.arange(BLOCK_ROWS, device=rows.device)
        counts = packed["index.counts"]
        before = torch.where(window < rows[:, None], counts[window.clamp(max=self.rows - 1)].long(), 0).sum(1)
        start = packed["index.before"].index_select(0, block) + before
        lengths = counts.index_select(0, rows).long()
        row = torch.arange(len(rows), device=rows.device).repeat_interleave(lengths)
        places = torch.arange(len(row), device=rows.device) + (start - lengths.cumsum(0) + lengths)[row]
        taken = values.new_zeros(len(rows), self.dim)
        taken[row, packed["index.columns"][places].long()] = values[places]
        return taken


def _empty(form: Form) -> dict[str, Tensor]:
    return {name: torch.empty(size, dtype=dtype, device="meta") for name, (size, dtype) in form.items()}


def top_cells(importance: np.ndarray, kept: int, least: int = 0) -> np.ndarray:
    """Which cells are the most important: (V, D) -> (V, D) bool with ``kept`` ones; ties to the smaller row.

    Args:
        least: cells that every row keeps, its own most important ones.
    """
    ranked = importance.astype(np.float32)
    if least:
        if least * len(ranked) > kept:
            raise ValueError(f"{least} cells of each of {len(ranked):,} rows are more than the {kept:,} that are kept")
        own = np.argpartition(-ranked, least - 1, axis=1)[:, :least]
        np.put_along_axis(ranked, own, np.inf, axis=1)
    flat = ranked.ravel()
    threshold = np.partition(flat, len(flat) - kept)[len(flat) - kept]
    mask = flat > threshold
    tied = np.flatnonzero(flat == threshold)
    mask[tied[: kept - int(mask.sum())]] = True
    return mask.reshape(ranked.shape)


def cells_within(rows: int, dim: int, budget: int, least: int = 1) -> int:
    """How many cells of a (rows, dim) table can be served in ``budget`` bytes.

    Raises:
        TooFewBytes: if not even ``least`` cells can; says what they would take.
    """

    def size(kept: int) -> int:
        return cost(Layout(rows, dim, kept).measured()).bytes

    if size(least) > budget:
        raise TooFewBytes(
            f"no {least:,} cells of {rows:,} rows can be kept in a budget of {budget:,} bytes: the least is "
            f"{size(least):,}; raise the budget"
        )
    return bisect_right(range(least, rows * dim + 1), budget, key=size) + least - 1


def keep_most_important(method: str, given: Evidence, importance: np.ndarray, budget: int) -> Allocation:
    """The allocation, for `Masked`, of the most important cells within the budget, whatever their field.

    Args:
        method: whose ``build`` makes it `Masked`.
        importance: (V, D).
    """
    rows, dim = importance.shape
    return allocation_of(method, given, top_cells(importance, cells_within(rows, dim, budget)))


def allocation_of(method: str, given: Evidence, mask: np.ndarray) -> Allocation:
    """The allocation, for `Masked`, of the cells that a mask (V, D) keeps."""
    dims = dict.fromkeys(given.schema.names, given.dim)
    return Allocation(method, dims, {"cells": int(mask.sum())}, {"mask": np.packbits(mask, axis=1)})


class _Cells(FieldEmbedding):
    """A table (V, D) of all fields, as wide as D, of which ``kept`` cells are served."""

    def __init__(self, schema: Schema, dim: int, kept: int) -> None:
        super().__init__()
        self.dim = dim
        self.table = Table(schema.num_rows, dim)  # first, so that it starts as the supernet's of equal seed did
        self.layout = Layout(schema.num_rows, dim, kept)

    def kept(self) -> Tensor:
        """(V, D) bool: the cells that are served."""
        raise NotImplementedError(f"{type(self).__name__} must define kept()")

    def packed(self) -> dict[str, Tensor]:
        weight = self.table.weight.detach()
        return self.layout.measured() if weight.is_meta else self.layout.pack(weight, self.kept())

    def lookup(self, packed: Packed, occ: Occurrences) -> Tensor:
        return spread(self.layout.take(packed, occ.rows), occ)


class Masked(_Cells):
    """Trains only the cells that an allocation keeps; the others are 0 throughout.

    Args:
        allocation: of `allocation_of`, of the schema's fields.
    """

    def __init__(self, schema: Schema, dim: int, allocation: Allocation) -> None:
        super().__init__(schema, dim, allocation.settings["cells"])
        octets = allocation.arrays.get("mask")
        shape = (schema.num_rows, -(-dim // 8))
        if octets is None or octets.shape != shape:
            found = "none is there" if octets is None else f"{octets.shape=}"
            raise ValueError(f"array 'mask' must have the shape {shape}, however {found}; derive the allocation again")
        mask = np.unpackbits(octets, axis=1, count=dim).astype(bool)
        if int(mask.sum()) != self.layout.kept:
            raise ValueError(
                f"array 'mask' keeps {int(mask.sum()):,} cells, however cells={self.layout.kept:,}; "
                "derive the allocation again"
            )
        self.register_buffer("mask", torch.from_numpy(mask), persistent=False)

    mask: Tensor

    def forward(self, occ: Occurrences) -> Tensor:
        """Occurrences -> (B, F, D)."""
        return spread(self.table(occ.rows) * self.mask.index_select(0, occ.rows), occ)

    def kept(self) -> Tensor:
        return self.mask


class Pruned(_Cells):
    """Trains all cells, and at the end keeps the largest.

    Args:
        kept: cells.
        least: cells that every row keeps.
    """

    def __init__(self, schema: Schema, dim: int, kept: int, least: int) -> None:
        super().__init__(schema, dim, kept)
        self.least = least

    def forward(self, occ: Occurrences) -> Tensor:
        """Occurrences -> (B, F, D)."""
        return spread(self.table(occ.rows), occ)

    def kept(self) -> Tensor:
        """The largest cells as the table is now: after `finish`, those that it kept."""
        weight = self.table.weight.detach()
        mask = top_cells(weight.abs().cpu().numpy(), self.layout.kept, self.least)
        return torch.from_numpy(mask).to(weight.device)

    @torch.no_grad()
    def finish(self) -> None:
        self.table.weight.mul_(self.kept())
