"""Tables in a few bits: symmetric codes with a scale for each row, packed into bytes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.allocation.evidence import Evidence
from pipeline.data.schema import Schema
from pipeline.embeddings.batch import Occurrences
from pipeline.embeddings.contract import FieldEmbedding
from pipeline.embeddings.cost import Plain, widest_uniform
from pipeline.embeddings.mixed import MixedTables

BITS = (2, 4, 8)  # numbers of bits that divide a byte


def quantise(table: Tensor, bits: int = 8) -> tuple[Tensor, Tensor]:
    """Symmetric codes with a scale for each row: (V, d) float32 -> (V, d) int8, (V,) float16.

    Codes go from ``-(2**(bits - 1) - 1)`` to ``2**(bits - 1) - 1``. A row's scale is its largest magnitude divided by
    the largest code, rounded up to float16 so that nothing is clipped. Then ``|x - code * scale| <= scale / 2``. A row
    of zeros has scale 0.

    Raises:
        ValueError: for a number that is not finite, or too large for a scale in float16 (8.3 million in 8 bits).
    """
    top = 2 ** (bits - 1) - 1
    largest = table.abs().amax(1).double()
    exact = largest / top
    scale = exact.half()
    scale = torch.where(scale.double() < exact, _next_half(scale), scale)
    if not bool(torch.isfinite(scale).all()):
        row = int(torch.isfinite(scale).logical_not().nonzero()[0])
        raise ValueError(
            f"row {row} of a table goes up to {float(largest[row]):g}, too large for int{bits}; use float32"
        )
    return codes_within(table, scale, -top, top), scale


def codes_within(table: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    """Nearest codes from ``low`` to ``high`` for given scales (V,), 0 in rows of scale 0: (V, d) -> (V, d) int8."""
    steps = torch.where(scale > 0, scale, torch.inf).double()[:, None]
    return (table / steps).round_().clamp_(low, high).to(torch.int8)


def _next_half(values: Tensor) -> Tensor:
    """The next larger float16 of numbers that are not negative."""
    return (values.view(torch.int16) + 1).view(torch.float16)


def packed_codes(codes: Tensor, bits: int) -> Tensor:
    """Pack codes of ``bits`` bits into bytes, the first code in the lowest bits: (V, d) int8 -> (V, bytes) uint8."""
    per_byte = 8 // bits
    unsigned = (codes.to(torch.int16) + 2 ** (bits - 1)).to(torch.uint8)
    unsigned = torch.nn.functional.pad(unsigned, (0, -codes.shape[1] % per_byte)).view(len(codes), -1, per_byte)
    packed = unsigned[:, :, 0].clone()
    for i in range(1, per_byte):
        packed |= unsigned[:, :, i] << (i * bits)
    return packed


def unpacked_codes(packed: Tensor, bits: int, dim: int) -> Tensor:
    """The inverse of `packed_codes` for rows of ``dim`` codes: (V, bytes) uint8 -> (V, dim) int8."""
    unsigned = torch.stack([(packed >> shift) & (2**bits - 1) for shift in range(0, 8, bits)], 2)
    return (unsigned.flatten(1)[:, :dim].to(torch.int16) - 2 ** (bits - 1)).to(torch.int8)


class RoundedTables(MixedTables):
    """`MixedTables` whose tables are rounded to a few bits after training; projections are small and stay float32.

    Until `finish` they are trained and looked up like `MixedTables`. After it they are trained as they are served: a
    lookup rounds its rows, as another `finish` would, and the gradient passes through (straight-through estimator,
    Bengio et al. 2013).

    Args:
        schema, dims, dim: of `MixedTables`.
        bits: of a code: 8, 4 or 2.

    Raises:
        ValueError: for another number of bits.
    """

    replayable = False  # whether it is settled is read in each step

    def __init__(self, schema: Schema, dims: Mapping[str, int], dim: int, bits: int) -> None:
        super().__init__(schema, dims, dim)
        if bits not in BITS:
            raise ValueError(f"bits must be one of {list(BITS)}, got {bits}")
        self.bits = bits
        for d, table in self.tables.items():
            scale = torch.zeros(len(table.get_parameter("weight")), dtype=torch.float16)
            self.register_buffer(f"scale_{d}", scale)  # of the rows; 0 before `finish`
        self.register_buffer("settled", torch.tensor(False))

    settled: Tensor

    def values(self, name: str, rows: Tensor) -> Tensor:
        stored = super().values(name, rows)
        if not bool(self.settled):
            return stored
        served = _values(*quantise(stored.detach(), self.bits))
        return served + (stored - stored.detach())  # equal, bit for bit, to the served numbers

    @torch.no_grad()
    def finish(self) -> None:
        for d, table in self.tables.items():
            codes, scale = self.rounded(d)
            table.get_parameter("weight").copy_(_values(codes, scale))
            self.get_buffer(f"scale_{d}").copy_(scale)
        self.settled.fill_(True)

    def rounded(self, d: str) -> tuple[Tensor, Tensor]:
        """Codes (V, d) int8 and scales (V,) float16 to which the trained table of dimension d is rounded."""
        return quantise(self.tables[d].get_parameter("weight"), self.bits)

    def packed(self) -> dict[str, Tensor]:
        """Codes, scales and projections; before `finish` only their sizes are meaningful."""
        kept: dict[str, Tensor] = {}
        for d, table in self.tables.items():
            scale = self.get_buffer(f"scale_{d}")
            weight = table.get_parameter("weight").detach()
            codes = codes_within(weight, scale, -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1)
            kept |= {f"table.{d}": packed_codes(codes, self.bits), f"scale.{d}": scale}
        return kept | {f"projection.{d}": p.detach() for d, p in self.projections.items()}

    def lookup(self, packed: Mapping[str, Tensor], occ: Occurrences) -> Tensor:
        def values(d: str, rows: Tensor) -> Tensor:
            codes = unpacked_codes(packed[f"table.{d}"].index_select(0, rows), self.bits, int(d))
            return _values(codes, packed[f"scale.{d}"].index_select(0, rows))

        projections = {d: packed[f"projection.{d}"] for d in self.projections}
        return self.lifted(occ.rows, occ.ends, values, projections)


def _values(codes: Tensor, scale: Tensor) -> Tensor:
    """(V, d) int8, (V,) float16 -> (V, d) float32."""
    return codes.float() * scale.float()[:, None]


def widest(evidence: Evidence, plain: Plain) -> int:
    """The widest common dimension of all fields for which their ``plain`` tables fit the budget; D without a budget."""
    if evidence.budget is None:
        return evidence.dim

    def make(d: int) -> FieldEmbedding:
        return plain(evidence.schema, dict.fromkeys(evidence.schema.names, d), evidence.dim)

    return widest_uniform(make, evidence.dim, evidence.budget, evidence.method).dim
