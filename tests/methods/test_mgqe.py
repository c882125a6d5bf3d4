"""MGQE's tiers as they are derived; that rows keep to them is tested in test_codes."""

import numpy as np
import pytest

from pipeline.allocation.evidence import Evidence
from pipeline.data.schema import Field, Schema
from pipeline.embeddings.cost import cost, full_tables
from pipeline.methods import dpq, mgqe

SCHEMA = Schema((Field("user", 3000), Field("item", 1001), Field("age", 5)))
DIM = 16
FULL = full_tables(SCHEMA, DIM).bytes


def given(**more: int) -> Evidence:
    return Evidence(SCHEMA, DIM, ((DIM,),) * 3, np.zeros((3, 1), np.int64), FULL, **more)


def test_head_and_tail_of_every_field_cost_the_bits_of_their_own_centroids() -> None:
    allocation = mgqe.derive(given(), groups=4, centroids=[256, 64], head=0.1)
    made = mgqe.build(SCHEMA, DIM, allocation)
    assert made.centroids == [256, 64] and made.small == ("age",)
    assert made.codes.numbers == [300, 2700, 101, 900]  # a part of a value belongs to the head
    assert len(made.codes.data) == 300 * 4 + 2700 * 3 + 101 * 4 + 900 * 3
    assert cost(made.packed()).bytes == len(made.codes.data) + 4 * 256 * DIM + 4 * 5 * DIM


def test_the_tail_has_a_quarter_of_the_head_s_centroids_and_tiers_buy_finer_codes_than_one_for_all() -> None:
    for budget in (FULL // 10, FULL // 5):
        tiered, plain = mgqe.derive(given(budget=budget)).settings, dpq.derive(given(budget=budget)).settings
        assert tiered["centroids"][0] == 4 * tiered["centroids"][1] and tiered["shares"] == [0.1]
        assert (tiered["groups"], tiered["centroids"][0]) >= (plain["groups"], plain["centroids"][0])


def test_other_than_two_numbers_of_centroids_are_refused() -> None:
    with pytest.raises(ValueError, match="two numbers, of head and tail"):
        mgqe.derive(given(), centroids=[8])
