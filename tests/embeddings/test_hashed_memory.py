"""The memory of shared numbers, and the hash that says which of them a value reads."""

import numpy as np
import pytest
import torch

from pipeline.allocation.allocation import Allocation
from pipeline.embeddings.hashed_memory import Memory, SlotHash, constants, mixed
from pipeline.embeddings.table import INIT_SD
from tests.contracts import WORD, splitmix64


def test_mixing_in_int64_is_splitmix64() -> None:
    numbers = [0, 1, 2, 12345, 2**31, 2**62, 2**63 - 1, -1, -2, -(2**63)]
    expected = [splitmix64(x % WORD) for x in numbers]
    assert [x % WORD for x in mixed(torch.tensor(numbers)).tolist()] == expected
    assert expected[0] == 0xE220A8397B1DCDAF  # the first number of the published generator for the seed 0


def test_positions_are_the_upper_bits_of_a_product_and_a_sum_of_64_bits() -> None:
    hashed, keys = SlotHash(3, seed=5, stream=1), mixed(torch.arange(4))[:, None]
    cells = hashed(keys, 1000)
    for u in range(4):
        for i in range(3):
            h = (int(keys[u, 0]) * int(hashed.factors[i]) + int(hashed.shifts[i])) % WORD
            assert int(cells[u, i]) == (h >> 33) * 1000 >> 31


def test_a_hash_depends_only_on_its_seed_and_its_stream() -> None:
    keys = mixed(torch.arange(500))[:, None]
    cells = SlotHash(8, seed=1, stream=0)(keys, 10**6)
    assert torch.equal(cells, SlotHash(8, seed=1, stream=0)(keys, 10**6))
    for other in (SlotHash(8, seed=2, stream=0), SlotHash(8, seed=1, stream=1)):
        assert float((cells == other(keys, 10**6)).double().mean()) < 0.001
    # These exact numbers: a saved model must find its cells under any version of numpy or torch.
    assert constants(1, 0, 2).tolist() == [-5653703133376969021, 7806873273932414515]


@pytest.mark.parametrize("size", [97, 4096])
def test_cells_are_read_as_often_as_by_chance(size: int) -> None:
    """Chi-square of equal loads: its mean is the number of degrees of freedom, its variance twice that."""
    cells = SlotHash(16, seed=3, stream=0)(mixed(torch.arange(20_000))[:, None], size)
    assert int(cells.min()) >= 0 and int(cells.max()) < size
    for loads in (torch.bincount(cells.flatten(), minlength=size), torch.bincount(cells[:, 5], minlength=size)):
        mean = loads.double().mean()
        chi_square = float(((loads - mean) ** 2 / mean).sum())
        assert abs(chi_square - (size - 1)) < 4 * (2 * (size - 1)) ** 0.5


def test_signs_are_balanced_and_independent_of_the_positions() -> None:
    hashed, keys = SlotHash(16, seed=3, stream=0), mixed(torch.arange(20_000))[:, None]
    signs = hashed.signs(keys, torch.float32)
    assert set(signs.flatten().tolist()) == {-1.0, 1.0}
    n = signs.numel()
    assert abs(float(signs.mean())) < 4 / n**0.5
    odd = hashed(keys, 2) * 2 - 1
    assert abs(float((signs * odd).mean())) < 4 / n**0.5


def test_a_cell_s_gradient_is_the_sum_over_all_reads_of_it() -> None:
    memory = Memory(6)
    cells = torch.tensor([[0, 5], [5, 5], [2, 0]])
    values = memory(cells)
    torch.testing.assert_close(values, memory.weight[cells])
    values.backward(torch.tensor([[1.0, 2.0], [4.0, 8.0], [16.0, 32.0]]))
    assert memory.weight.grad is not None
    assert memory.weight.grad.tolist() == [33.0, 0.0, 16.0, 0.0, 0.0, 14.0]
    torch.manual_seed(0)
    assert float(Memory(100_000).weight.detach().std()) == pytest.approx(INIT_SD, rel=0.02)


def test_a_memory_larger_than_the_range_of_positions_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must hold 1 to 2,147,483,647 numbers, got 2,147,483,648; lower the budget"):
        Memory(2**31)


def test_values_that_share_numbers_must_have_the_same_dimension() -> None:
    assert Allocation("robe", {"user": 4, "item": 4}).common_dim == 4
    with pytest.raises(ValueError, match=r"robe: all fields must have the same dimension, got {'user': 4, 'item': 2}"):
        _ = Allocation("robe", {"user": 4, "item": 2}).common_dim


def test_positions_of_neighbouring_ids_are_not_correlated() -> None:
    cells = SlotHash(1, seed=0, stream=0)(mixed(torch.arange(50_000))[:, None], 1000)[:, 0].double().numpy()
    assert abs(np.corrcoef(cells[1:], cells[:-1])[0, 1]) < 4 / 50_000**0.5
