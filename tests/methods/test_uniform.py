"""One dimension for all fields, plain or lifted to D."""

import torch

from pipeline.data.schema import Field, Schema
from pipeline.embeddings.batch import Lookup
from pipeline.embeddings.cost import cost, full_tables
from pipeline.methods import uniform
from tests.contracts import evidence

SCHEMA = Schema((Field("user", 70), Field("item", 50), Field("age", 3)))
DIM = 8


def test_lifted_tables_pay_for_their_projections_and_give_the_backbone_d() -> None:
    half = full_tables(SCHEMA, DIM).bytes // 2
    given = evidence("uniform", SCHEMA, DIM, budget=half)
    plain, lifted = uniform.derive(given), uniform.derive(given, lift=True)
    assert (
        plain.dims["user"] == 4 and lifted.dims["user"] == 3
    )  # 123 * 4 * 4 are half; 3 more matrices of 4 x 8 are not
    one, two = (uniform.build(SCHEMA, DIM, allocation) for allocation in (plain, lifted))
    occ = Lookup(SCHEMA)(torch.tensor([[3, 2, 1]], dtype=torch.int32))
    assert one(occ).shape == (1, 3, 4) and two(occ).shape == (1, 3, DIM)
    assert cost(one.packed()).bytes == 123 * 4 * 4 and cost(two.packed()).bytes == 123 * 3 * 4 + 3 * 3 * DIM * 4
    assert uniform.derive(evidence("uniform", SCHEMA, DIM, match=half), lift=True) == lifted


def test_a_match_takes_the_nearest_dimension_even_above_it_and_a_budget_never_does() -> None:
    above = 123 * 4 * 5 - 100
    assert uniform.derive(evidence("uniform", SCHEMA, DIM, match=above)).dims["user"] == 5
    assert uniform.derive(evidence("uniform", SCHEMA, DIM, budget=above)).dims["user"] == 4
