import numpy as np
import pytest
import torch

from pipeline.allocation.allocation import Allocation
from pipeline.embeddings.hashed_memory import Memory, SlotHash, common_dim, constants, mixed
from pipeline.embeddings.table import INIT_SD

WORD = 2**64


def splitmix64(x: int) -> int:
    """As published, in whole numbers without a sign."""
    x = (x + 0x9E3779B97F4A7C15) % WORD
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % WORD
    return x ^ (x >> 31)


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


def test_a_hash_is_the_same_for_one_seed_and_stream_and_another_for_others() -> None:
    keys = mixed(torch.arange(500))[:, None]
    cells = SlotHash(8, seed=1, stream=0)(keys, 10**6)
    assert torch.equal(cells, SlotHash(8, seed=1, stream=0)(keys, 10**6))
    for other in (SlotHash(8, seed=2, stream=0), SlotHash(8, seed=1, stream=1)):
        assert float((cells == other(keys, 10**6)).double().mean()) < 0.001
    # The very numbers, for a saved model must find its cells again under any version of numpy or torch.
    assert constants(1, 0, 2).tolist() == CONSTANTS


CONSTANTS = [-5653703133376969021, 7806873273932414515]


@pytest.mark.parametrize("size", [97, 4096])
def test_cells_are_loaded_as_by_chance(size: int) -> None:
    """Chi-square of equal loads: its mean is the degrees of freedom, its variance twice that."""
    cells = SlotHash(16, seed=3, stream=0)(mixed(torch.arange(20_000))[:, None], size)
    assert int(cells.min()) >= 0 and int(cells.max()) < size
    for loads in (torch.bincount(cells.flatten(), minlength=size), torch.bincount(cells[:, 5], minlength=size)):
        mean = loads.double().mean()
        chi_square = float(((loads - mean) ** 2 / mean).sum())
        assert abs(chi_square - (size - 1)) < 4 * (2 * (size - 1)) ** 0.5


def test_signs_are_even_and_do_not_follow_the_positions() -> None:
    hashed, keys = SlotHash(16, seed=3, stream=0), mixed(torch.arange(20_000))[:, None]
    signs = hashed.signs(keys, torch.float32)
    assert set(signs.flatten().tolist()) == {-1.0, 1.0}
    n = signs.numel()
    assert abs(float(signs.mean())) < 4 / n**0.5
    odd = hashed(keys, 2) * 2 - 1
    assert abs(float((signs * odd).mean())) < 4 / n**0.5


def test_a_cell_s_gradient_is_the_sum_over_all_who_read_it() -> None:
    memory = Memory(6)
    cells = torch.tensor([[0, 5], [5, 5], [2, 0]])
    values = memory(cells)
    torch.testing.assert_close(values, memory.weight[cells])
    values.backward(torch.tensor([[1.0, 2.0], [4.0, 8.0], [16.0, 32.0]]))
    assert memory.weight.grad is not None
    assert memory.weight.grad.tolist() == [33.0, 0.0, 16.0, 0.0, 0.0, 14.0]
    torch.manual_seed(0)
    assert float(Memory(100_000).weight.detach().std()) == pytest.approx(INIT_SD, rel=0.02)


def test_a_memory_that_positions_cannot_reach_is_refused() -> None:
    with pytest.raises(ValueError, match=r"1 to 2,147,483,647 numbers, however: size=2,147,483,648"):
        Memory(2**31)


def test_values_that_share_numbers_have_one_dimension() -> None:
    assert common_dim(Allocation("robe", {"user": 4, "item": 4})) == 4
    with pytest.raises(ValueError, match=r"robe has one dimension for all fields, however {'user': 4, 'item': 2}"):
        common_dim(Allocation("robe", {"user": 4, "item": 2}))


def test_numbers_are_hashed_within_the_generator_s_period_of_ids() -> None:
    """Neighbouring ids, as a field has them, are no nearer to each other than any others."""
    cells = SlotHash(1, seed=0, stream=0)(mixed(torch.arange(50_000))[:, None], 1000)[:, 0].double().numpy()
    assert abs(np.corrcoef(cells[1:], cells[:-1])[0, 1]) < 4 / 50_000**0.5
