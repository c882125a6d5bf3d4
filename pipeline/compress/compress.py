"""`compress`, and its report."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.allocation.budget import TooFewBytes, in_bytes
from pipeline.coding.choice import Choices, Plan
from pipeline.coding.prediction import predict
from pipeline.coding.quantiser import SHARES
from pipeline.coding.ranks import GROUP
from pipeline.coding.stored import StoredTable
from pipeline.compress.effect import Effect, Losses, Segment, effects_of, found_in, segments_of
from pipeline.compress.tables import CodedEmbedding, Kind, replace_module
from pipeline.workflow.progress import progress

SEGMENT_BITS = 8 * 24  # of a segment besides its plan and numbers: its first row, whole bytes, the number of blocks
SIZES = tuple(float(share) for share in np.geomspace(0.5, 0.005, 28))  # of the tables, tried for a tolerance


@dataclass(frozen=True)
class TableReport:
    """One table before and after.

    Args:
        name: of the module, as in ``named_modules()``.
        rows: number of rows.
        dim: numbers per row.
        bytes_before: of the table.
        bytes: of its coded form, with all that decodes it.
        predicted_loss: predicted rise of the mean loss.
    """

    name: str
    rows: int
    dim: int
    bytes_before: int
    bytes: int
    predicted_loss: float

    @property
    def bits_per_row(self) -> float:
        """Bits of the coded form per row."""
        return 8 * self.bytes / self.rows


@dataclass(frozen=True)
class Report:
    """What `compress` did; ``print`` shows it as a text.

    Args:
        tables: one entry for each table.
    """

    tables: tuple[TableReport, ...]

    @property
    def bytes_before(self) -> int:
        """Bytes of all tables before."""
        return sum(table.bytes_before for table in self.tables)

    @property
    def bytes(self) -> int:
        """Bytes of all coded tables, with all that decodes them."""
        return sum(table.bytes for table in self.tables)

    @property
    def ratio(self) -> float:
        """How many times smaller the tables are."""
        return self.bytes_before / self.bytes

    def __str__(self) -> str:
        lines = [f"{self.bytes_before:,} bytes of tables -> {self.bytes:,} ({self.ratio:.1f} times smaller)"]
        lines += [
            f"  {t.name}: {t.rows:,} x {t.dim}, {t.bytes_before:,} -> {t.bytes:,} bytes, {t.bits_per_row:.1f} bits a "
            f"row, predicted loss {t.predicted_loss:+.2g}"
            for t in self.tables
        ]
        return "\n".join(lines)


def compress(
    model: nn.Module,
    batches: Iterable[Any],
    losses: Losses,
    *,
    budget: float | None = None,
    tolerance: float | None = None,
    held_out: Iterable[Any] | None = None,
    tables: Sequence[str] | None = None,
    fields: Mapping[str, Sequence[int]] | None = None,
) -> tuple[nn.Module, Report]:
    """A copy of a trained model whose embedding tables are coded; the model itself stays as it is.

    Args:
        model: any module whose tables are `torch.nn.Embedding` or `torch.nn.EmbeddingBag`.
        batches: of training data, some 100,000 rows. More rows show better which values are frequent.
        losses: ``losses(model, batch)`` returns the loss of each row of a batch, (B,). The model is in evaluation mode.
        budget: bytes of the tables (a whole number), or a share of their bytes now (``0.025``).
        tolerance: instead of ``budget``: how much the mean loss on ``held_out`` may rise; the tables get the smallest
            size of a falling series that keeps to it.
        held_out: batches for ``tolerance``; iterated several times.
        tables: names of the modules to code; None for all that are found.
        fields: for a table that holds several fields one after the other: the first row of each, ascending from 0.

    Returns:
        The coded model, in evaluation mode, and the report. ``state_dict()`` of the model holds the coded tables and
        nothing of the old ones; `restore` loads it.

    Raises:
        ValueError: if a table cannot be coded, or an argument is wrong; the message names it and says why.
        TooFewBytes: if the tables cannot be coded in the budget; the message names the fewest possible bytes.
    """
    if (budget is None) == (tolerance is None) or (tolerance is None) != (held_out is None):
        raise ValueError("give either a budget, or a tolerance with held_out batches")
    found = found_in(model, tables)
    segments = segments_of(found, fields or {})
    was_training = model.training
    model.eval()
    try:
        compressor = Compressor(model, found, segments, effects_of(model, found, segments, batches, losses))
        if budget is not None:
            return compressor.coded(in_bytes(budget, compressor.bytes))
        assert held_out is not None and tolerance is not None
        return compressor.smallest(losses, held_out, tolerance)
    finally:
        model.train(was_training)


class _Choice:
    """One way to cut the rows of all segments into blocks: as `SHARES` say, or all rows in one block.

    With several blocks, every row has to say which block it belongs to, because rows have no order of frequency.
    """

    def __init__(self, vectors: Sequence[Tensor], effects: Sequence[Effect], shares: Sequence[float]) -> None:
        self.orders, self.predictions = [], []
        for table, effect in zip(vectors, effects, strict=True):
            order = torch.arange(len(table))
            extra = SEGMENT_BITS
            if shares:
                order = effect.weights.argsort(descending=True, stable=True)
                extra += 8 * (-(-len(table) // 4) + 16 * -(-len(table) // GROUP))
            found = predict(table[order], effect.weights[order], effect.metric, shares)
            blocks = order.split(np.diff(found.cuts).tolist())
            self.orders.append(torch.cat([block.sort().values for block in blocks]))  # `Ranks` counts in this order
            self.predictions.append(replace(found, extra=(extra, SEGMENT_BITS)))
        self.choices = Choices(self.predictions)

    def plans(self, limit: int) -> tuple[list[Plan], list[float]]:
        """The plans within ``limit`` bytes, and the predicted loss of each."""
        plans, _ = self.choices.within(limit)
        return plans, [p.loss(plan.bits, plan.by_rows) for p, plan in zip(self.predictions, plans, strict=True)]


class Compressor:
    """A measured model that can be coded at any size."""

    def __init__(
        self, model: nn.Module, found: Mapping[str, Kind], segments: Sequence[Segment], effects: Sequence[Effect]
    ) -> None:
        self.model, self.found, self.segments, self.effects = model, found, segments, effects
        self.vectors = [found[s.name].weight.detach()[s.first : s.first + s.rows].float().cpu() for s in segments]
        self.choices = [_Choice(self.vectors, effects, shares) for shares in ((), SHARES)]

    @property
    def bytes(self) -> int:
        return sum(module.weight.numel() * module.weight.element_size() for module in self.found.values())

    def coded(self, limit: int) -> tuple[nn.Module, Report]:
        """The model within ``limit`` bytes of tables.

        Raises:
            TooFewBytes: if that is not possible.
        """
        plans, losses, orders = self._best(limit)
        tables: dict[str, list[StoredTable]] = {name: [] for name in self.found}
        lost = dict.fromkeys(self.found, 0.0)
        rows = zip(self.segments, self.vectors, self.effects, plans, losses, orders, strict=True)
        for segment, vectors, effect, plan, loss, order in rows:
            one_block = torch.arange(len(vectors)) if len(plan.rows) == 1 else order
            tables[segment.name].append(StoredTable.of(vectors, effect.weights, effect.metric, plan, one_block))
            lost[segment.name] += loss
        small, report = _without_tables(self.model, self.found), []
        for name, module in self.found.items():
            firsts = torch.tensor([segment.first for segment in self.segments if segment.name == name])
            coded = CodedEmbedding(module, firsts, tables[name]).to(module.weight.device)
            replace_module(small, name, coded)
            before = module.weight.numel() * module.weight.element_size()
            report.append(
                TableReport(name, module.num_embeddings, module.embedding_dim, before, coded.bytes, lost[name])
            )
        return small.eval(), Report(tuple(report))

    def _best(self, limit: int) -> tuple[list[Plan], list[float], list[Tensor]]:
        """Plans, predicted losses and orders of the better way to cut blocks."""
        found, refused = [], None
        for choice in self.choices:
            try:
                found.append((*choice.plans(limit), choice.orders))
            except TooFewBytes as error:
                refused = error
        if not found:
            assert refused is not None
            raise refused
        return min(found, key=lambda one: sum(one[1]))

    def smallest(self, losses: Losses, held_out: Iterable[Any], tolerance: float) -> tuple[nn.Module, Report]:
        """The smallest size of a falling series that raises the mean loss on ``held_out`` by at most ``tolerance``."""

        @torch.no_grad()
        def mean(model: nn.Module) -> float:
            parts = [losses(model, batch).double() for batch in held_out]
            return float(torch.cat(parts).mean())

        allowed, best = mean(self.model) + tolerance, None
        for share in progress(SIZES, desc="compress", unit=" sizes"):
            try:
                tried = self.coded(int(share * self.bytes))
            except TooFewBytes:
                break
            if mean(tried[0]) > allowed:
                break
            best = tried
        if best is None:
            raise ValueError(f"no size keeps the mean loss within {tolerance:g}; raise the tolerance")
        return best


def _without_tables(model: nn.Module, found: Mapping[str, Kind]) -> nn.Module:
    """A copy of the model that shares nothing with it and does not copy its tables."""
    memo: dict[int, Any] = {id(module.weight): nn.Parameter(torch.empty(0)) for module in found.values()}
    return copy.deepcopy(model, memo)
