"""Coded tables: full tables that are coded after training, with bits where they save the most loss; see
`pipeline.coding`.

If the backbone has a first-order weight for each row, that weight is one more coordinate of the row. So a row has W
numbers: D, or D + 1 with the first-order weight last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.coding import arrays
from pipeline.coding.bitstring import pack
from pipeline.coding.choice import Plan
from pipeline.coding.prediction import Prediction, predict
from pipeline.coding.store import Blocks, Levels, encode
from pipeline.data.schema import Schema
from pipeline.embeddings.batch import Occurrences
from pipeline.embeddings.contract import Calibration, FieldEmbedding, Findings, Judge
from pipeline.embeddings.mixed import MixedTables
from pipeline.embeddings.table import Table, field_of, grouped_matmul

TOGETHER = 65_536  # rows that are rounded together


@dataclass(frozen=True)
class Moments:
    """The facts on the data and the trained model that a coding depends on.

    Args:
        weights: (R,) for each row of the joint table, how often it is looked up; see `Calibration.weights`.
        metrics: (F, W, W) float64, the Gauss-Newton matrix of each field.
    """

    weights: Tensor
    metrics: Tensor

    @classmethod
    def of(cls, calibration: Calibration) -> Moments:
        """The moments of a trained model."""
        return cls(calibration.weights().cpu(), calibration.metrics())

    @classmethod
    def neutral(cls, schema: Schema, width: int) -> Moments:
        """As if all rows were equally frequent and all directions equally important."""
        return cls(torch.ones(schema.num_rows), torch.eye(width, dtype=torch.float64).expand(len(schema), -1, -1))

    def of_fields(self, table: Tensor, schema: Schema) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yields for each field its rows of a joint table (R, W) and its weights, in the order of coding, and its
        metric."""
        return zip(in_order(table, schema), in_order(self.weights, schema), self.metrics, strict=True)


def in_order(table: Tensor, schema: Schema) -> Iterator[Tensor]:
    """The rows of each field in the order of coding: as the ids, but the unknown id, 0, at the end. The encoder numbers
    the values of a vocabulary by falling frequency."""
    for first, number in zip(schema.first_rows.tolist(), schema.cardinalities.tolist(), strict=True):
        yield table[first : first + number].roll(-1, 0)


class Sharing(nn.Module):
    """Until they are coded, rare values of a field share the vector of its unknown id; first-order weights stay apart.

    Args:
        schema: F fields.
        dim: D.
        own: (F,) number of first ids of each field that have a vector of their own; at least 1, the unknown id.
    """

    def __init__(self, schema: Schema, dim: int, own: np.ndarray) -> None:
        super().__init__()
        self.dim = dim
        unknown = np.repeat(schema.first_rows, schema.cardinalities)
        rare = np.arange(schema.num_rows) - unknown >= np.repeat(own, schema.cardinalities)
        self.register_buffer("rare", torch.from_numpy(rare), persistent=False)
        self.register_buffer("unknown", torch.from_numpy(schema.first_rows.astype(np.int64)), persistent=False)

    rare: Tensor
    unknown: Tensor

    def vectors(self, table: Table, values: Tensor, occ: Occurrences) -> Tensor:
        """Rows (U, W) of a batch, from a joint table; those of rare values get the D numbers that they share."""
        shared = table(self.unknown)[field_of(occ.ends, occ.rows), : self.dim]
        own = values[:, : self.dim]
        vectors = torch.where(self.rare[occ.rows][:, None], shared, own)
        return torch.cat([vectors, values[:, self.dim :]], 1)

    @torch.no_grad()
    def settle(self, weight: Tensor) -> None:
        """Write the shared vectors into the rows (R, W) of a joint table."""
        rare = self.rare.nonzero()[:, 0]
        unknown = self.unknown[torch.searchsorted(self.unknown, rare, right=True) - 1]
        weight[rare, : self.dim] = weight[unknown, : self.dim]


class ExaminedTables(MixedTables):
    """Full tables in a search; at its end they are examined for what each way to code them would cost.

    Args:
        schema: F fields.
        dim: D.
        own: of `Sharing`; None if all values have vectors of their own.
    """

    keeps_best = True

    def __init__(self, schema: Schema, dim: int, own: np.ndarray | None = None) -> None:
        super().__init__(schema, dict.fromkeys(schema.names, dim), dim)
        self.schema, self.own = schema, own
        self.sharing = None if own is None else Sharing(schema, dim, own)
        self.replayable = own is None  # shared rows are looked up a second time, in any order
        self.first_order: Table | None = None
        self._predictions: list[Prediction] = []

    def take_first_order(self, wanted: bool) -> bool:
        self.first_order = Table(self.schema.num_rows, 1, sd=0.0) if wanted else None
        return wanted

    def vectors(self, occ: Occurrences) -> Tensor:
        vectors = super().vectors(occ)
        if self.sharing is not None:
            vectors = self.sharing.vectors(self.joint, vectors, occ)
        return vectors if self.first_order is None else torch.cat([vectors, self.first_order(occ.rows)], 1)

    @property
    def joint(self) -> Table:
        """The table of all fields (R, D)."""
        table = self.tables[str(self.dim)]
        assert isinstance(table, Table)
        return table

    @torch.no_grad()
    def load(self, table: Tensor) -> None:
        """Set all numbers from a joint table (R, W)."""
        self.joint.weight.copy_(table[:, : self.dim])
        if self.first_order is not None:
            self.first_order.weight.copy_(table[:, self.dim :])

    def conclude(self, judge: Judge) -> None:
        if self.sharing is not None:
            self.sharing.settle(self.joint.weight)
        self._predictions = predictions(full_table(self, self.first_order), self.schema, Moments.of(judge))

    def findings(self) -> Findings:
        about = {"dim": np.array(self.dim)} | ({} if self.own is None else {"own": self.own})
        return Findings(arrays=lambda: arrays.of_predictions(self._predictions) | about)


def full_table(embedding: MixedTables, first_order: Table | None = None) -> Tensor:
    """The joint table (R, W) of full tables and first-order weights.

    Raises:
        ValueError: if a dimension is below D.
    """
    if set(embedding.dims.values()) != {embedding.dim}:
        raise ValueError(f"tables must all have the dimension {embedding.dim}, got {embedding.dims}")
    table = embedding.tables[str(embedding.dim)].get_parameter("weight").detach()
    return (table if first_order is None else torch.cat([table, first_order.weight.detach()], 1)).cpu()


def predictions(table: Tensor, schema: Schema, moments: Moments) -> list[Prediction]:
    """The prediction of each field of a joint table (R, W)."""
    return [predict(*of_field) for of_field in moments.of_fields(table, schema)]


class CodedTables(FieldEmbedding):
    """Full tables until `finish`, which codes them by a plan; then coefficients, decoders and means.

    After `finish`, all three can be trained on. The forward pass rounds coefficients, and the gradient passes through
    (straight-through estimator, Bengio et al. 2013). Another `finish` settles them on their levels.

    Args:
        schema: F fields.
        dim: D.
        width: W, numbers of a row: D, or D + 1 with its first-order weight.
        plans: of the fields.
        own: of `Sharing`, which ends with the first `finish`; None if all values have vectors of their own.

    Raises:
        ValueError: for another width.
    """

    def __init__(
        self, schema: Schema, dim: int, width: int, plans: Sequence[Plan], own: np.ndarray | None = None
    ) -> None:
        super().__init__()
        if width not in (dim, dim + 1):
            raise ValueError(f"the width of a coded row must be {dim} or {dim + 1}, got {width}")
        self.dim, self.width, self.schema, self.plans = dim, width, schema, list(plans)
        self.table = Table(schema.num_rows, dim)  # rows until `finish`, then coefficients
        if width > dim:
            self.table.weight = nn.Parameter(nn.functional.pad(self.table.weight.detach(), (0, width - dim)))
        self.blocks = blocks = Blocks(plans, width)
        self.register_buffer("decoder", torch.zeros(len(schema), width, width))
        self.register_buffer("mean", torch.zeros(len(schema), width))
        self.register_buffer("low", torch.zeros(blocks.bits.shape, dtype=torch.float16))
        self.register_buffer("step", torch.zeros(blocks.bits.shape, dtype=torch.float16))
        self.register_buffer("scale", torch.zeros(blocks.num_scales, dtype=torch.float16))
        self.register_buffer("coded", torch.zeros((), dtype=torch.bool))
        self.own = own
        self.sharing = None if own is None else Sharing(schema, dim, own)
        self.moments: Moments | None = None

    @classmethod
    @torch.no_grad()
    def of(cls, table: Tensor, schema: Schema, dim: int, plans: Sequence[Plan], moments: Moments) -> CodedTables:
        """A trained joint table (R, W), coded by plans."""
        coded = cls(schema, dim, table.shape[1], plans)
        coded.table.weight.copy_(table)
        coded.moments = moments
        coded.finish()
        return coded

    decoder: Tensor
    mean: Tensor
    low: Tensor
    step: Tensor
    scale: Tensor
    coded: Tensor

    def take_first_order(self, wanted: bool) -> bool:
        if wanted != (self.width > self.dim):
            holds, has = ("hold", "no") if self.width > self.dim else ("do not hold", "a table of")
            raise ValueError(
                f"the coded tables {holds} first-order weights, and the backbone has {has} such weights; search and "
                "derive again with this backbone"
            )
        return wanted

    def trains_as(self) -> str:
        sharing = "" if self.own is None else f", own vectors of {self.own.tolist()} values"
        return f"full tables of width {self.width}{sharing}"

    def calibrate(self, calibration: Calibration) -> None:
        self.moments = Moments.of(calibration)

    @torch.no_grad()
    def finish(self) -> None:
        """Code the tables at the first call, by the moments of `calibrate`; settle the numbers on what is stored."""
        if not bool(self.coded):
            if self.sharing is not None:
                self.sharing.settle(self.table.weight)
            self.encode(self.moments or Moments.neutral(self.schema, self.width))
        for name in ("decoder", "mean"):
            numbers = getattr(self, name).detach().half().float()
            delattr(self, name)
            setattr(self, name, nn.Parameter(numbers))
        levels = self._levels()
        for block, first, rows in self._parts():
            rows.copy_(levels.settled(rows, block, first))

    def _parts(self) -> Iterator[tuple[int, int, Tensor]]:
        """Yields all coefficients in parts of at most `TOGETHER` rows: the block, the number of the first row in it,
        and a view of the rows (n, W)."""
        block, table = 0, self.table.weight.detach()
        numbers = zip(self.plans, self.schema.first_rows.tolist(), self.schema.cardinalities.tolist(), strict=True)
        for plan, first, number in numbers:
            for begin, end in plan.ranges:
                for at in range(begin, end, TOGETHER):
                    to = min(at + TOGETHER, end)
                    known = table[first + 1 + at : first + min(to + 1, number)]
                    if len(known):
                        yield block, at - begin, known
                    if to == number:  # the unknown id is the last in the order of coding
                        yield block, number - 1 - begin, table[first : first + 1]
                block += 1

    def encode(self, moments: Moments) -> None:
        """Replace the vectors by coefficients, and set decoders, means and quantisers."""
        table = self.table.weight
        block = scaled = 0
        firsts = self.schema.first_rows.tolist()
        fields = moments.of_fields(table.detach(), self.schema)  # copies of the rows of one field after the other
        for f, (plan, first, (rows, weights, metric)) in enumerate(zip(self.plans, firsts, fields, strict=True)):
            code = encode(rows.cpu(), weights, metric, plan)
            number, width = code.coefficients.shape
            self.decoder[f, : len(code.decoder)], self.mean[f] = code.decoder, code.mean
            of_field = slice(block, block + len(plan.rows))
            self.low[of_field, :width], self.step[of_field, :width] = code.low, code.step
            self.scale[scaled : scaled + len(code.scale)] = code.scale
            block, scaled = block + len(plan.rows), scaled + len(code.scale)
            wide = nn.functional.pad(code.coefficients, (0, self.width - width))
            table[first : first + number] = wide.roll(1, 0)
        self.coded.fill_(True)

    def vectors(self, occ: Occurrences) -> Tensor:
        values: Tensor = self.table(occ.rows)
        if not bool(self.coded):
            return values if self.sharing is None else self.sharing.vectors(self.table, values, occ)
        fields = field_of(occ.ends, occ.rows)
        block, within = self._places(occ.rows, fields)
        levels, blocks = self._levels(), self._blocks()
        nearest = levels.nearest(values.detach(), block, within)
        rounded = torch.where(blocks.bits[block] > 0, values + (nearest - values.detach()), 0)
        decoder = torch.where(blocks.decoded[..., None], _stored(self.decoder), self._fixed())
        mean = torch.where(blocks.centred[:, None], _stored(self.mean), 0)
        return grouped_matmul(rounded, decoder, occ.ends) + mean[fields]

    def _fixed(self) -> Tensor:
        """(F, W, W) decoders that are not stored: identities of fields that are coded by rows, and zeros."""
        blocks = self._blocks()
        return torch.eye(self.width, device=blocks.centred.device) * ~blocks.centred[:, None, None]

    def _blocks(self) -> Blocks:
        """The blocks on the device of the table."""
        self.blocks = self.blocks.on(self.table.weight.device)
        return self.blocks

    def _levels(self) -> Levels:
        return Levels(self._blocks(), self.low, self.step, self.scale)

    def _places(self, rows: Tensor, fields: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the joint table (u,), their fields (u,) -> their blocks (u,), their numbers within these (u,)."""
        first = torch.from_numpy(self.schema.first_rows.astype(np.int64)).to(rows.device)[fields]
        number = torch.from_numpy(self.schema.cardinalities.astype(np.int64)).to(rows.device)[fields]
        place = first + torch.where(rows == first, number, rows - first) - 1
        begins = self._blocks().begins
        block = torch.bucketize(place, begins, right=True) - 1
        return block, place - begins[block]

    def packed(self) -> dict[str, Tensor]:
        plan = arrays.of_plans(self.plans)
        meta = self.table.weight.is_meta
        blocks = self.blocks if meta else self._blocks()
        kept = {
            "plan.blocks": torch.from_numpy(plan["blocks"]),
            "plan.cuts": torch.from_numpy(plan["cuts"]),
            "plan.bits": arrays.pack_bits(plan["bits"]),
        }
        if meta:
            lengths = blocks.lengths
            kept["table"] = torch.empty(lengths.pop("codes"), dtype=torch.uint8)
            numbers = {"scale": (), "quantiser": (2,), "decoder": (self.width,), "mean": (self.width,)}  # of a part
            for name, length in lengths.items():
                kept[name] = torch.empty((length, *numbers[name]), dtype=torch.float16)
            return {name: tensor.to("meta") for name, tensor in kept.items()}
        return kept | {
            "table": pack(blocks.layout, self._codes()),
            "scale": self.scale,
            "quantiser": torch.stack([self.low[blocks.quantised], self.step[blocks.quantised]], 1),
            "decoder": self.decoder.detach()[blocks.decoded].half(),
            "mean": self.mean.detach()[blocks.centred].half(),
        }

    @torch.no_grad()
    def _codes(self) -> Iterator[Tensor]:
        """The codes (n, W) of each block."""
        block, levels = 0, self._levels()
        for plan, coefficients in zip(self.plans, in_order(self.table.weight, self.schema), strict=True):
            for a, b in plan.ranges:
                yield levels.codes(coefficients[a:b], block)
                block += 1

    def lookup(self, packed: Mapping[str, Tensor], occ: Occurrences) -> Tensor:
        numbers, (number, cuts) = self.schema.cardinalities.tolist(), (packed["plan.blocks"], packed["plan.cuts"])
        plans = arrays.read_plans(number.numpy(), cuts.numpy(), packed["plan.bits"], numbers, self.width)
        blocks = Blocks(plans, self.width)
        decoder, mean = self._fixed(), torch.zeros(len(self.schema), self.width)
        decoder[blocks.decoded], mean[blocks.centred] = packed["decoder"].float(), packed["mean"].float()
        fields = field_of(occ.ends, occ.rows)
        block, within = self._places(occ.rows, fields)
        values = Levels.stored(blocks, packed["quantiser"], packed["scale"]).read(packed["table"], block, within)
        return grouped_matmul(values, decoder, occ.ends) + mean[fields]


def _stored(numbers: Tensor) -> Tensor:
    """Numbers as they are stored, in float16; the gradient is that of the numbers."""
    return numbers + (numbers.detach().half().float() - numbers.detach())
