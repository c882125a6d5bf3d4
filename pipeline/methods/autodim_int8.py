"""AutoDim with tables of 8 bits; the prices of candidates are those of 8 bits, too. Zhao et al. 2021, WWW."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.evidence import Evidence, Problem
from pipeline.data.schema import Schema
from pipeline.embeddings.autodim_supernet import AutoDimSupernet, decided
from pipeline.embeddings.rounded import RoundedTables
from pipeline.embeddings.selection import ANNEALED, Temperature
from pipeline.workflow.validation import Fraction, Rate


def find(
    problem: Problem,
    *,
    temperature: Temperature = ANNEALED,
    warm_up: Fraction = 0.5,
    bytes_weight: Rate = 0.0,
    dims_weight: Rate = 0.0,
) -> AutoDimSupernet:
    """AutoDim's supernet, in float32. Only the tables of the chosen dimensions are rounded, after their training.

    Args:
        temperature, warm_up, bytes_weight, dims_weight: of `AutoDimSupernet`.
    """
    return AutoDimSupernet(problem, temperature, warm_up, bytes_weight=bytes_weight, dims_weight=dims_weight)


def derive(evidence: Evidence) -> Allocation:
    return decided(evidence)


def plain(schema: Schema, dims: Mapping[str, int], dim: int) -> RoundedTables:
    return RoundedTables(schema, dims, dim, bits=8)


def build(schema: Schema, dim: int, allocation: Allocation) -> RoundedTables:
    return plain(schema, allocation.dims, dim)
