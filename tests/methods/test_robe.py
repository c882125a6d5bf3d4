"""ROBE-Z: blocks of one memory against plain indexing; the hash is tested in test_hashed_memory."""

import numpy as np
import pytest
import torch

from pipeline.data.schema import Field, Schema
from pipeline.embeddings.batch import Lookup
from pipeline.embeddings.cost import spent
from pipeline.embeddings.hashed_memory import mixed
from pipeline.embeddings.table import INIT_SD
from pipeline.methods import robe
from tests.contracts import evidence

SCHEMA = Schema((Field("user", 70), Field("item", 50), Field("age", 3)))
DIM = 8


@pytest.mark.parametrize("sign", [False, True])
@pytest.mark.parametrize("block", [1, 3, 8])
def test_every_block_is_read_in_one_piece_from_its_hash_on_and_wraps_around_the_end(block: int, sign: bool) -> None:
    memory = robe.BlockMemory(SCHEMA, DIM, size=11, block=block, seed=2, sign=sign)
    keys = mixed(torch.arange(123) + memory.salt)[:, None]
    starts, numbers = memory.hash(keys, 11), memory.memory.weight
    signs = memory.sign_hash.signs(keys, torch.float32) if sign else torch.ones(123, DIM)
    ids = torch.tensor([[69, 49, 2], [0, 0, 0], [1, 2, 1]], dtype=torch.int32)

    def plain(v: int) -> torch.Tensor:
        return torch.stack([signs[v, i] * numbers[(starts[v, i // block] + i % block) % 11] for i in range(DIM)])

    rows = (ids + torch.tensor([0, 70, 120])).tolist()
    expected = torch.stack([torch.stack([plain(v) for v in row]) for row in rows])
    torch.testing.assert_close(memory(Lookup(SCHEMA)(ids)), expected)
    wraps = memory.cells(keys).diff(dim=1) < 0
    assert block == 1 or bool(wraps.any())


def test_the_option_is_the_length_of_a_block_not_their_number() -> None:
    memory = robe.BlockMemory(SCHEMA, DIM, size=10_000, block=4, seed=0, sign=False)
    steps = memory.cells(mixed(torch.arange(123))[:, None]).diff(dim=1) == 1
    within = torch.arange(DIM - 1) % 4 != 3
    assert bool(steps[:, within].all()) and float(steps[:, ~within].double().mean()) < 0.02


def test_blocks_of_one_number_are_plain_hashing_of_numbers() -> None:
    memory = robe.BlockMemory(SCHEMA, DIM, size=10_000, block=1, seed=0, sign=False)
    keys = mixed(torch.arange(123) + memory.salt)[:, None]
    assert torch.equal(memory.cells(keys), memory.hash(keys, 10_000))


@pytest.mark.parametrize("block", [1, 5, 8])
def test_all_cells_are_read_equally_often_even_those_at_the_ends(block: int) -> None:
    memory = robe.BlockMemory(SCHEMA, DIM, size=50, block=block, seed=0, sign=False)
    loads = torch.bincount(memory.cells(mixed(torch.arange(20_000))[:, None]).flatten(), minlength=50).double()
    assert float((loads / loads.mean() - 1).abs().max()) < 5 * (block / loads.mean()) ** 0.5


def test_the_budget_is_filled_with_numbers_and_coordinates_start_with_the_usual_standard_deviation() -> None:
    allocation = robe.derive(evidence("robe", SCHEMA, DIM, budget=1003))
    assert allocation.settings["size"] == 250 and spent(robe.build, SCHEMA, DIM, allocation).bytes == 1000
    assert robe.derive(evidence("robe", SCHEMA, DIM, budget=10**7)).settings["size"] == 123 * DIM
    torch.manual_seed(0)
    large = robe.BlockMemory(SCHEMA, DIM, size=50_000, block=8, seed=0, sign=True)
    embedded = large(Lookup(SCHEMA)(torch.from_numpy(np.indices((70, 50, 3)).reshape(3, -1).T.astype(np.int32))))
    assert float(embedded.detach().std()) == pytest.approx(INIT_SD, rel=0.1)


def test_signs_remove_the_bias_of_shared_numbers_from_inner_products() -> None:
    """Two values that share numbers by chance are alike as often as they are opposite."""
    inner = {}
    for sign in (False, True):
        memory = robe.BlockMemory(SCHEMA, DIM, size=30, block=1, seed=0, sign=sign)
        keys = mixed(torch.arange(123) + memory.salt)[:, None]
        with torch.no_grad():
            memory.memory.weight.fill_(1.0)
            vectors = memory.memory(memory.cells(keys))
            vectors = vectors * memory.sign_hash.signs(keys, torch.float32) if sign else vectors
        products = (vectors @ vectors.T)[~torch.eye(123, dtype=torch.bool)]
        inner[sign] = float(products.mean())
    assert inner[False] == DIM and abs(inner[True]) < 0.5


def test_a_block_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="block must be 1 to dim=8, and at most size=100, got block=9"):
        robe.BlockMemory(SCHEMA, DIM, size=100, block=9, seed=0, sign=False)
    assert robe.derive(evidence("robe", SCHEMA, DIM), block=64).settings["block"] == DIM
