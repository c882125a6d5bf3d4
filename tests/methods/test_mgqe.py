"""The tiers that MGQE derives; test_product_codes checks that rows use only the centroids of their tier."""

from pipeline.data.schema import Field, Schema
from pipeline.embeddings.cost import cost, full_tables
from pipeline.methods import dpq, mgqe
from tests.contracts import evidence

SCHEMA = Schema((Field("user", 3000), Field("item", 1001), Field("age", 5)))
DIM = 16
FULL = full_tables(SCHEMA, DIM).bytes


def test_head_and_tail_of_every_field_cost_the_bits_of_their_own_centroids() -> None:
    allocation = mgqe.derive(evidence("mgqe", SCHEMA, DIM), groups=4, centroids=[256, 64], head=0.1)
    made = mgqe.build(SCHEMA, DIM, allocation)
    assert made.centroids == [256, 64] and made.small == ("age",)
    assert made.codes.numbers == [300, 2700, 101, 900]  # a part of a value belongs to the head
    assert len(made.codes.data) == 300 * 4 + 2700 * 3 + 101 * 4 + 900 * 3
    assert cost(made.packed()).bytes == len(made.codes.data) + 4 * 256 * DIM + 4 * 5 * DIM


def test_the_tail_has_a_quarter_of_the_head_s_centroids_and_codes_are_as_fine_as_dpq_s_or_finer() -> None:
    for budget in (FULL // 10, FULL // 5):
        tiered = mgqe.derive(evidence("mgqe", SCHEMA, DIM, budget=budget)).settings
        plain = dpq.derive(evidence("dpq", SCHEMA, DIM, budget=budget)).settings
        assert tiered["centroids"][0] == 4 * tiered["centroids"][1] and tiered["shares"] == [0.1]
        assert (tiered["groups"], tiered["centroids"][0]) >= (plain["groups"], plain["centroids"][0])
