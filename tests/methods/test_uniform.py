"""One dimension for all fields, plain or lifted to D."""

import numpy as np
import torch

from pipeline.allocation.evidence import Evidence
from pipeline.data.schema import Field, Schema
from pipeline.embeddings.batch import Lookup
from pipeline.embeddings.cost import cost, full_tables
from pipeline.methods import uniform

SCHEMA = Schema((Field("user", 70), Field("item", 50), Field("age", 3)))
DIM = 8
FULL = full_tables(SCHEMA, DIM).bytes


def given(**size: int) -> Evidence:
    return Evidence(SCHEMA, DIM, ((DIM,),) * 3, np.full((3, 1), FULL), FULL, **size)


def test_a_lifted_one_pays_for_its_projections_and_gives_the_backbone_d() -> None:
    budget = FULL // 2
    plain, lifted = uniform.derive(given(budget=budget)), uniform.derive(given(budget=budget), lift=True)
    assert plain.dims["user"] == 4 and lifted.dims["user"] == 3  # 123 * 4 * 4 are half; 3 more tables of 4 x 8 are not
    one, two = (uniform.build(SCHEMA, DIM, allocation) for allocation in (plain, lifted))
    occ = Lookup(SCHEMA)(torch.tensor([[3, 2, 1]], dtype=torch.int32))
    assert one(occ).shape == (1, 3, 4) and two(occ).shape == (1, 3, DIM)
    assert cost(one.packed()).bytes == 123 * 4 * 4 and cost(two.packed()).bytes == 123 * 3 * 4 + 3 * 3 * DIM * 4
    matched = uniform.derive(given(match=budget), lift=True)
    assert matched == lifted
