"""Which rows of a table a batch looks up, and how their vectors are spread over it."""

import pytest
import torch

from pipeline.data.schema import PADDING, Field, Schema
from pipeline.embeddings.batch import Lookup, spread

pytestmark = pytest.mark.usefixtures("double")
SCHEMA = Schema((Field("user", 7), Field("tags", 6, width=3), Field("item", 5), Field("age", 3)))
IDS = torch.tensor(
    [[1, 2, 5, PADDING, 3, 2], [6, 0, PADDING, PADDING, 4, 0], [0, 1, 2, 3, 0, 1], [1, 5, 2, PADDING, 3, 2]],
    dtype=torch.int32,
)


def test_occurrences_say_which_rows_occur_where_and_with_what_weight() -> None:
    lookup = Lookup(SCHEMA)
    occ = lookup(IDS)
    assert occ.rows.tolist() == [0, 1, 6, 7, 8, 9, 10, 12, 13, 16, 17, 18, 19, 20]
    assert occ.ends.tolist() == [3, 8, 11, 14]
    mass = dict(zip(occ.rows.tolist(), occ.mass().tolist(), strict=True))
    assert mass[1] == 2 and mass[7] == 1  # user 1 twice, tag 0 alone in its bag
    assert mass[9] == pytest.approx(1 / 2 + 1 / 3 + 1 / 2)  # tag 2 in bags of two, three and two
    assert sum(mass.values()) == pytest.approx(len(IDS) * len(SCHEMA))


def test_the_gradient_of_spread_is_right_for_bags_and_for_single_values() -> None:
    for schema, ids in ((SCHEMA, IDS), (SCHEMA.subset(["user", "item"]), IDS[:, [0, 4]])):
        occ = Lookup(schema)(ids)
        values = torch.randn(len(occ.rows), 3, requires_grad=True)
        assert torch.autograd.gradcheck(lambda v, occ=occ: spread(v, occ), (values,))
