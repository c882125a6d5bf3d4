"""MPE: every group of rows of similar frequency has its own number of bits, and training goes through the rounding.

"Mixed-Precision Embeddings for Large-Scale Recommendation Models", 2024, arXiv 2409.20305. With the step a_b of a
width of b bits, and an offset of D numbers that all widths share,

    u = (e - offset) / a_b,     Q_b(e) = a_b * clip(round(u), -2**(b-1), 2**(b-1) - 1) + offset,     Q_0(e) = 0.

The gradients are those of LSQ+ (Bhalgat et al. 2020, arXiv 2004.09576): the gradient of e passes within the range of
the codes; that of the step is round(u) - u there, and the end of the range beyond it; the offset learns beyond it. The
gradients of step and offset are multiplied by 1 / sqrt(2**(b-1) R D), for R rows of D numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from pipeline.coding.bitstring import Layout, pack, read
from pipeline.data.schema import Schema
from pipeline.embeddings.batch import Occurrences
from pipeline.embeddings.contract import FieldEmbedding, Findings
from pipeline.embeddings.table import Table

WIDTHS = (0, 1, 2, 3, 4, 5, 6)  # bits
CODE = 3  # bits that store a width


def codes_of(values: Tensor, step: Tensor, offset: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers (u, D), steps and bits (u, 1) or scalars, offset (D,) -> u, and its nearest codes; both (u, D)."""
    scaled = (values - offset) / step
    half = (2.0**bits) / 2
    return scaled, torch.minimum(torch.maximum(scaled.round(), -half), half - 1)


class Quantise(torch.autograd.Function):
    """Q_b(e) for numbers e (u, D), with the gradients of LSQ+; see the module.

    Args of ``apply``:
        values: (u, D).
        step: (u, 1), or (1, 1) if all rows have the same width.
        offset: (D,).
        bits: of the shape of ``step``, at least 1.
        numbers: R * D, how many numbers the table has.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, values: Tensor, step: Tensor, offset: Tensor, bits: Tensor, numbers: int) -> Tensor:
        scaled, codes = codes_of(values, step, offset, bits)
        inside = (scaled >= -(2.0**bits) / 2) & (scaled <= 2.0**bits / 2 - 1)
        ctx.save_for_backward(inside, torch.where(inside, codes - scaled, codes), bits)  # type: ignore[attr-defined]
        ctx.numbers, ctx.step_shape = numbers, step.shape  # type: ignore[attr-defined]
        return codes * step + offset

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        inside, slope, bits = ctx.saved_tensors
        scale = (2.0**bits / 2 * ctx.numbers) ** -0.5
        of_step = (grad * slope * scale).sum(1, keepdim=True)
        of_offset = (grad * ~inside * scale).sum(0)
        return grad * inside, of_step.sum_to_size(ctx.step_shape), of_offset, None, None


class Groups:
    """Ranges of ids within fields, in the order of the table of all fields.

    Args:
        ends: of the groups of each field: ids, ascending, the last is the field's cardinality.
        groups: number of the group to which each range belongs; several ranges may belong to one group.

    Attributes:
        rows: (S,) int64 number of rows of each range.
        ends: (S,) int64 row of the table of all fields at which each range ends.
        of: (S,) int64 group of each range.
    """

    def __init__(self, ends: Sequence[Sequence[int]], groups: Sequence[Sequence[int]]) -> None:
        self.rows = np.concatenate([np.diff([0, *field]) for field in ends]).astype(np.int64)
        self.ends = np.cumsum(self.rows)
        self.of = np.concatenate([np.asarray(field, np.int64) for field in groups])

    @classmethod
    def by_field(cls, schema: Schema, number: int) -> Groups:
        """Each field is cut into ``number`` groups of equal size, or into single rows if it has fewer."""
        ends, groups, first = [], [], 0
        for cardinality in schema.cardinalities.tolist():
            cuts = np.unique(-(-cardinality * np.arange(1, number + 1) // number))
            ends.append(cuts.tolist())
            groups.append(range(first, first + len(cuts)))
            first += len(cuts)
        return cls(ends, groups)

    @classmethod
    def across(cls, order: np.ndarray, schema: Schema, number: int) -> Groups:
        """The rows of all fields are cut into ``number`` groups of equal size by falling frequency.

        Args:
            order: (R,) rows by falling frequency, each field's in the order of its ids.
            schema: F fields.
            number: of groups; at most R.
        """
        group = np.empty(len(order), np.int64)
        group[order] = np.arange(len(order)) * number // len(order)
        parts = np.split(group, schema.first_rows[1:])
        groups = [np.unique(part) for part in parts]
        ends = [np.searchsorted(part, own, side="right") for part, own in zip(parts, groups, strict=True)]
        return cls([end.tolist() for end in ends], [own.tolist() for own in groups])

    @property
    def number(self) -> int:
        return int(self.of.max()) + 1

    @property
    def sizes(self) -> np.ndarray:
        """(G,) int64 number of rows of each group."""
        return np.bincount(self.of, weights=self.rows).astype(np.int64)


class PrecisionSearch(FieldEmbedding):
    """The search: a softmax over bit widths for every group, with the rounding in the loop. Table, steps, offset and
    logits are trained on the training loss plus a price of the expected bits,

        e' = sum_b p_gb Q_b(e),    p_g = softmax(logits_g / temperature),
        loss + price * sum_g (n_g / mean n) sum_b p_gb b / r_g,

    where r_g is how often a row of group g occurs, relative to a row of the rarest group. Groups of equal size n_g, as
    in the paper, have the paper's price.

    NOTE[DIFF]: the logarithm of a step is learned. Adam ignores the scale of a gradient, and a learning rate of 0.01
    would make steps negative, which start below 0.01.

    Args:
        schema: F fields.
        dim: D.
        groups: G groups of rows.
        counts: (R,) occurrences of each row in training.
        temperature: of the softmax.
        price: of a bit.
        reach: the largest magnitude of codes before training, for all widths; None for the paper's steps,
            2 mean|e| / sqrt(2 ** (b - 1)).
    """

    keeps_best = True

    def __init__(
        self,
        schema: Schema,
        dim: int,
        groups: Groups,
        counts: np.ndarray,
        temperature: float,
        price: float,
        reach: float | None,
    ) -> None:
        super().__init__()
        self.dim, self.temperature, self.price = dim, temperature, price
        self.table = Table(schema.num_rows, dim)
        self.register_buffer("bits", torch.tensor(WIDTHS[1:], dtype=torch.float32), persistent=False)
        steps = first_steps(self.table.weight.detach(), self.bits, reach)
        self.log_steps = nn.Parameter(steps.log())
        self.offset = nn.Parameter(torch.zeros(dim))
        self.logits = nn.Parameter(torch.zeros(groups.number, len(WIDTHS)))
        sizes = groups.sizes
        occurrences = np.bincount(groups.of, weights=np.add.reduceat(counts, groups.ends - groups.rows))
        often = np.maximum(occurrences / sizes, 1)
        shares = sizes / sizes.mean() / (often / often.min())
        self.register_buffer("shares", torch.tensor(shares, dtype=torch.float32), persistent=False)
        self.rows, self.occurrences = groups.rows, occurrences
        self.register_buffer("ends", torch.from_numpy(groups.ends), persistent=False)
        self.register_buffer("of", torch.from_numpy(groups.of), persistent=False)

    bits: Tensor
    shares: Tensor
    ends: Tensor
    of: Tensor

    def log_probabilities(self) -> Tensor:
        """(G, widths)."""
        return torch.log_softmax(self.logits / self.temperature, 1)

    def vectors(self, occ: Occurrences) -> Tensor:
        values = self.table(occ.rows)
        group = self.of[torch.searchsorted(self.ends, occ.rows, right=True)]
        p = nn.functional.embedding(group, self.log_probabilities().exp())
        mixture = torch.zeros_like(values)
        for n, (bits, log_step) in enumerate(zip(self.bits, self.log_steps, strict=True), 1):
            rounded = Quantise.apply(
                values, log_step.exp().view(1, 1), self.offset, bits.view(1, 1), self.table.weight.numel()
            )
            mixture = mixture + p[:, n, None] * rounded
        return mixture

    def arch_parameters(self) -> list[nn.Parameter]:
        return [self.logits]

    def objective(self, loss: Tensor, part: str) -> Tensor:
        if not self.price:
            return loss
        expected = self.log_probabilities().exp()[:, 1:] @ self.bits
        return loss + self.price * (self.shares * expected).sum()

    def packed(self) -> dict[str, Tensor]:
        return {
            "table": self.table.weight.detach(),
            "step": self.log_steps.detach(),
            "offset": self.offset.detach(),
            "logits": self.logits.detach(),
        }

    def findings(self) -> Findings:
        return Findings(arrays=self._found)

    @torch.no_grad()
    def _found(self) -> dict[str, np.ndarray]:
        """Of the groups ``scores`` (G, widths), log-probabilities, and ``occurrences`` (G,) in training; of S ranges
        ``rows`` (S,), their number of rows, and ``of`` (S,), their group; ``steps`` (widths - 1,), ``offset`` (D,)."""
        found = {"scores": self.log_probabilities(), "steps": self.log_steps.exp(), "offset": self.offset.detach()}
        arrays = {name: tensor.float().cpu().numpy() for name, tensor in found.items()}
        arrays |= {"occurrences": self.occurrences.astype(np.float32)}
        return arrays | {"rows": self.rows.astype(np.int32), "of": self.of.cpu().numpy().astype(np.int32)}


def first_steps(table: Tensor, bits: Tensor, reach: float | None) -> Tensor:
    """The steps of some widths before training: bits (n,) -> (n,); see `PrecisionSearch`."""
    if reach is not None:
        return reach / 2.0 ** (bits - 1)
    return 2 * table.abs().mean() / 2.0 ** ((bits - 1) / 2)


class PackedPrecision(FieldEmbedding):
    """A table with a fixed number of bits for each range of rows, trained through the rounding.

    A row of 0 bits is the zero vector. Steps and offset are trained, too. The table holds numbers of float32 in
    training; `finish` moves them onto their grids. If the embedding is trained after that, it rounds as it did before.

    Args:
        schema: F fields.
        dim: D.
        rows: (S,) number of rows of each range, in the order of the table of all fields.
        bits: (S,) of each range, 0 to 6; not all 0.
        steps: (6,) first steps of the widths 1 to 6.
        offset: (D,) first offset.
        stored: whether the ends of the ranges have to be stored, because they do not follow from the schema.

    Raises:
        ValueError: if the ranges do not cover the rows, or bits are out of range or all 0.
    """

    def __init__(
        self,
        schema: Schema,
        dim: int,
        rows: np.ndarray,
        bits: np.ndarray,
        steps: np.ndarray,
        offset: np.ndarray,
        stored: bool,
    ) -> None:
        super().__init__()
        if rows.sum() != schema.num_rows or rows.shape != bits.shape:
            raise ValueError(f"mpe: ranges must cover {schema.num_rows} rows, got {rows.tolist()}; derive again")
        if not bits.any() or bits.max() > max(WIDTHS):
            raise ValueError(f"mpe: bits must be 0 to {max(WIDTHS)} and not all 0, got {bits.tolist()}")
        self.dim, self.stored = dim, stored
        self.rows, self.bits = rows.astype(np.int64), bits.astype(np.int64)
        widths = np.unique(self.bits[self.bits > 0])  # those that occur
        self.table = Table(schema.num_rows, dim)
        self.log_steps = nn.Parameter(torch.tensor(steps[widths - 1], dtype=torch.float32).log())
        self.offset = nn.Parameter(torch.tensor(offset, dtype=torch.float32))
        self.register_buffer("ranges", torch.from_numpy(np.cumsum(self.rows)), persistent=False)
        self.register_buffer("range_bits", torch.from_numpy(self.bits), persistent=False)

    ranges: Tensor
    range_bits: Tensor

    def vectors(self, occ: Occurrences) -> Tensor:
        bits, place = _widths(occ.rows, self.ranges, self.range_bits)
        values = self.table(occ.rows)
        # Rows of 0 bits are rounded to 1 bit and then removed, so that no width needs a case of its own.
        rounded = Quantise.apply(
            values,
            self.log_steps.exp()[place],
            self.offset,
            bits.clamp(min=1).to(values.dtype),
            self.table.weight.numel(),
        )
        return torch.where(bits > 0, rounded, 0)

    @torch.no_grad()
    def finish(self) -> None:
        codes, bits, place = self._codes()
        self.table.weight.copy_(torch.where(bits > 0, codes * self.log_steps.exp()[place] + self.offset, 0))

    @torch.no_grad()
    def _codes(self) -> tuple[Tensor, Tensor, Tensor]:
        """(R, D) codes of all rows, from -2**(b-1) on; (R, 1) their bits and the position of their step."""
        table = self.table.weight.detach()
        bits, place = _widths(torch.arange(len(table), device=table.device), self.ranges, self.range_bits)
        steps = self.log_steps.exp()[place]
        return codes_of(table, steps, self.offset, bits.clamp(min=1).to(table.dtype))[1], bits, place

    def packed(self) -> dict[str, Tensor]:
        device = self.offset.device
        layout = _layout(self.rows, self.bits, self.dim)
        if self.table.weight.is_meta:
            table = torch.empty(layout.size, dtype=torch.uint8)
        else:
            codes, bits, _ = self._codes()
            unsigned = (codes + torch.where(bits > 0, 2**bits // 2, 0)).cpu()
            table = pack(layout, list(unsigned.split(self.rows.tolist())))
        kept = {"table": table, "step": self.log_steps.detach().exp(), "offset": self.offset.detach()}
        if self.stored:
            kept["plan.rows"] = torch.tensor(self.rows, dtype=torch.int32)
        plan = Layout(np.array([len(self.bits)]), np.array([[CODE]]))
        kept["plan.bits"] = pack(plan, [torch.from_numpy(self.bits)[:, None]])
        return {name: tensor.to(device) for name, tensor in kept.items()}

    def lookup(self, packed: Mapping[str, Tensor], occ: Occurrences) -> Tensor:
        device = occ.rows.device
        own = packed["plan.rows"].long() if self.stored else torch.tensor(self.rows, device=device)
        places = CODE * torch.arange(len(own), device=device)
        range_bits = read(packed["plan.bits"], places, torch.full_like(places, CODE)).long()
        bits, place = _widths(occ.rows, own.cumsum(0), range_bits)
        here = torch.searchsorted(own.cumsum(0), occ.rows, right=True)
        sizes = own * range_bits * self.dim
        first = (sizes.cumsum(0) - sizes)[here] + (occ.rows - (own.cumsum(0) - own)[here]) * bits[:, 0] * self.dim
        begins = first[:, None] + torch.arange(self.dim, device=device) * bits
        codes = read(packed["table"], begins, bits.expand_as(begins)) - torch.where(bits > 0, 2**bits // 2, 0)
        return torch.where(bits > 0, codes * packed["step"][place] + packed["offset"], 0)


def _widths(rows: Tensor, ranges: Tensor, range_bits: Tensor) -> tuple[Tensor, Tensor]:
    """Bits of rows, and the position of these bits among those that occur; 0 for rows of 0 bits.

    Args:
        rows: (u,) of the table of all fields.
        ranges: (S,) row at which each range ends.
        range_bits: (S,).

    Returns:
        Two of (u, 1) int64.
    """
    bits = range_bits[torch.searchsorted(ranges, rows, right=True)][:, None]
    widths = range_bits[range_bits > 0].unique()
    return bits, torch.searchsorted(widths, bits)


def _layout(rows: np.ndarray, bits: np.ndarray, dim: int) -> Layout:
    return Layout(rows, np.repeat(bits[:, None], dim, 1))
