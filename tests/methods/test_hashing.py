"""The hashing trick; its hash is tested in test_hashed_memory."""

import numpy as np
import torch

from pipeline.data.schema import PADDING, Field, Schema
from pipeline.embeddings.batch import Lookup
from pipeline.embeddings.cost import spent
from pipeline.methods import hashing
from tests.contracts import evidence

SCHEMA = Schema((Field("user", 70), Field("item", 50), Field("tags", 9, width=2)))
DIM = 4
IDS = torch.tensor([[3, 49, 0, 8], [69, 3, 5, PADDING], [3, 3, 8, 1]], dtype=torch.int32)


def test_the_budget_is_filled_with_rows() -> None:
    allocation = hashing.derive(evidence("hashing", SCHEMA, DIM, budget=500))
    assert allocation.settings["rows"] == 500 // (4 * DIM)
    assert spent(hashing.build, SCHEMA, DIM, allocation).bytes == 31 * 4 * DIM
    plenty = hashing.derive(evidence("hashing", SCHEMA, DIM, budget=10**6))
    assert plenty.settings["rows"] == 129  # one for every value is enough


def test_a_value_s_vector_is_the_row_of_its_slot_and_a_bag_s_is_the_mean_of_several() -> None:
    embedding = hashing.HashedTable(SCHEMA, DIM, rows=20, seed=0)
    slots, table = embedding.slots(torch.arange(129)), embedding.table.weight
    expected = [
        [table[slots[3]], table[slots[70 + 49]], (table[slots[120]] + table[slots[128]]) / 2],
        [table[slots[69]], table[slots[70 + 3]], table[slots[125]]],
        [table[slots[3]], table[slots[70 + 3]], (table[slots[128]] + table[slots[121]]) / 2],
    ]
    torch.testing.assert_close(embedding(Lookup(SCHEMA)(IDS)), torch.stack([torch.stack(row) for row in expected]))


def test_equal_ids_of_two_fields_hash_differently_and_slots_are_used_as_by_chance() -> None:
    large = Schema((Field("user", 30_000), Field("item", 30_000)))
    slots = hashing.HashedTable(large, 1, rows=500, seed=0).slots(torch.arange(60_000)).view(2, -1)
    assert abs(float((slots[0] == slots[1]).double().mean()) - 1 / 500) < 4 * (1 / 500 / 30_000) ** 0.5
    loads = torch.bincount(slots.flatten(), minlength=500).double()
    assert abs(float(((loads - 120) ** 2 / 120).sum()) - 499) < 4 * (2 * 499) ** 0.5


def test_values_that_share_a_slot_add_up_its_gradient_which_is_sparse() -> None:
    embedding = hashing.HashedTable(SCHEMA, DIM, rows=5, seed=0)
    slots = embedding.slots(torch.arange(129))
    embedding(Lookup(SCHEMA)(IDS)).sum().backward()
    gradient = embedding.table.weight.grad
    assert gradient is not None and gradient.is_sparse
    weight = np.zeros(5)
    for row, share in ((3, 2), (69, 1), (119, 1), (73, 2), (120, 0.5), (128, 1), (125, 1), (121, 0.5)):
        weight[slots[row]] += share
    np.testing.assert_allclose(gradient.to_dense().numpy(), np.tile(weight[:, None], DIM), rtol=1e-6)


def test_another_seed_is_another_hash() -> None:
    one, two = (hashing.derive(evidence("hashing", SCHEMA, DIM, budget=500, seed=seed)) for seed in (0, 1))
    slots = [hashing.build(SCHEMA, DIM, a).slots(torch.arange(129)) for a in (one, two)]
    assert float((slots[0] == slots[1]).double().mean()) < 0.2
