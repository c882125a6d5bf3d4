"""Pruned tables: the choice of the cells to keep, their training and their storage."""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
import torch
from torch import Tensor

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.budget import TooFewBytes
from pipeline.allocation.evidence import Evidence
from pipeline.data.schema import Schema
from pipeline.embeddings.batch import Occurrences
from pipeline.embeddings.bitmap import Bitmap, Form, Packed
from pipeline.embeddings.contract import FieldEmbedding
from pipeline.embeddings.cost import cost
from pipeline.embeddings.table import Table

BLOCK_ROWS = 16  # rows of a block; each block stores the number of kept cells before it


class Layout:
    """The storage of a table's kept cells, in the smallest of three forms.

    * ``bitmap``: a bit for every cell, and the kept numbers row by row;
    * ``csr``: the number of kept cells in each row, their columns, and the kept numbers row by row;
    * ``dense``: all numbers, if so many cells are kept that an index would cost more.

    The smallest form and its size depend only on the number of kept cells, so both are known before training.

    Args:
        rows: V.
        dim: D.
        kept: number of kept cells, up to V * D and below 2**31.

    Raises:
        ValueError: for another number of cells.
    """

    def __init__(self, rows: int, dim: int, kept: int) -> None:
        if not 1 <= kept <= rows * dim or kept >= 2**31:
            raise ValueError(f"a table of {rows:,} x {dim} cells must keep 1 to {rows * dim:,} of them, got {kept:,}")
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
        """Tensors of the same shapes and types as those of `pack`, on the ``meta`` device."""
        return _empty(self.form)

    def pack(self, values: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """The stored tensors, for values (V, D) float32 and a mask (V, D) bool with `kept` ones."""
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
        """Rows (U,) -> (U, D), read from the stored tensors; no other row is unpacked."""
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
    """(V, D) bool mask of the most important cells; ties go to the smaller row.

    Args:
        importance: (V, D).
        kept: number of cells in the mask.
        least: the number of cells that each row keeps at least, its own most important ones.

    Raises:
        ValueError: if the rows' least cells are more than the kept cells.
    """
    ranked = importance.astype(np.float32)
    if least:
        if least * len(ranked) > kept:
            raise ValueError(f"{least} cells of each of {len(ranked):,} rows must be at most the {kept:,} kept cells")
        own = np.argpartition(-ranked, least - 1, axis=1)[:, :least]
        np.put_along_axis(ranked, own, np.inf, axis=1)
    flat = ranked.ravel()
    threshold = np.partition(flat, len(flat) - kept)[len(flat) - kept]
    mask = flat > threshold
    tied = np.flatnonzero(flat == threshold)
    mask[tied[: kept - int(mask.sum())]] = True
    return mask.reshape(ranked.shape)


def cells_within(rows: int, dim: int, budget: int, least: int = 1) -> int:
    """The number of cells of a (rows, dim) table that can be served in ``budget`` bytes.

    Raises:
        TooFewBytes: if it is below ``least``; the message says the bytes of ``least`` cells.
    """

    def size(kept: int) -> int:
        return cost(Layout(rows, dim, kept).measured()).bytes

    if size(least) > budget:
        raise TooFewBytes(
            f"a budget of {budget:,} bytes is too small to keep {least:,} cells of {rows:,} rows: the least is "
            f"{size(least):,}; raise the budget"
        )
    return bisect_right(range(least, rows * dim + 1), budget, key=size) + least - 1


def keep_most_important(evidence: Evidence, importance: np.ndarray, budget: int) -> Allocation:
    """The allocation, for `Masked`, with the most important cells of all fields that the budget allows.

    Args:
        evidence: the schema, and D.
        importance: (V, D).
        budget: bytes.

    Raises:
        TooFewBytes: if not even one cell fits the budget.
    """
    rows, dim = importance.shape
    return keep(evidence, top_cells(importance, cells_within(rows, dim, budget)))


def keep(evidence: Evidence, mask: np.ndarray) -> Allocation:
    """The allocation, for `Masked`, with the cells of a mask (V, D) bool."""
    return evidence.allocation(evidence.dim, {"cells": int(mask.sum())}, {"mask": np.packbits(mask, axis=1)})


class _Cells(FieldEmbedding):
    """A table (V, D) of all fields; ``kept`` of its cells are served."""

    def __init__(self, schema: Schema, dim: int, kept: int) -> None:
        super().__init__()
        self.dim = dim
        self.table = Table(schema.num_rows, dim)  # drawn first, as in the supernets: equal seeds give equal tables
        self.layout = Layout(schema.num_rows, dim, kept)

    def kept(self) -> Tensor:
        """(V, D) bool: the cells that are served."""
        raise NotImplementedError(f"{type(self).__name__} must define kept()")

    def packed(self) -> dict[str, Tensor]:
        weight = self.table.weight.detach()
        return self.layout.measured() if weight.is_meta else self.layout.pack(weight, self.kept())

    def lookup(self, packed: Packed, occ: Occurrences) -> Tensor:
        return self.layout.take(packed, occ.rows)


class Masked(_Cells):
    """Trains only the cells that an allocation keeps; the others are always 0.

    Args:
        schema: F fields.
        dim: D.
        allocation: from `keep`, of the schema's fields.

    Raises:
        ValueError: if the mask does not fit the schema and the settings.
    """

    def __init__(self, schema: Schema, dim: int, allocation: Allocation) -> None:
        super().__init__(schema, dim, allocation.settings["cells"])
        octets = allocation.arrays.get("mask")
        shape = (schema.num_rows, -(-dim // 8))
        if octets is None or octets.shape != shape:
            got = None if octets is None else octets.shape
            raise ValueError(f"array 'mask' must have the shape {shape}, got {got}; derive the allocation again")
        mask = np.unpackbits(octets, axis=1, count=dim).astype(bool)
        if int(mask.sum()) != self.layout.kept:
            raise ValueError(
                f"array 'mask' must keep {self.layout.kept:,} cells, as the settings say, got {int(mask.sum()):,}; "
                "derive the allocation again"
            )
        self.register_buffer("mask", torch.from_numpy(mask), persistent=False)

    mask: Tensor

    def vectors(self, occ: Occurrences) -> Tensor:
        return self.table(occ.rows) * self.mask.index_select(0, occ.rows)

    def kept(self) -> Tensor:
        return self.mask


class Pruned(_Cells):
    """Trains all cells, and keeps the largest after training.

    Args:
        schema: F fields.
        dim: D.
        kept: number of kept cells.
        least: the number of cells that each row keeps at least.
    """

    def __init__(self, schema: Schema, dim: int, kept: int, least: int) -> None:
        super().__init__(schema, dim, kept)
        self.least = least

    def vectors(self, occ: Occurrences) -> Tensor:
        vectors: Tensor = self.table(occ.rows)
        return vectors

    def kept(self) -> Tensor:
        """(V, D) bool: the largest cells of the current table; after `finish`, the cells that it kept."""
        weight = self.table.weight.detach()
        mask = top_cells(weight.abs().cpu().numpy(), self.layout.kept, self.least)
        return torch.from_numpy(mask).to(weight.device)

    @torch.no_grad()
    def finish(self) -> None:
        self.table.weight.mul_(self.kept())
