"""The random numbers that assign rows to parts."""

import numpy as np

from pipeline.encoding.parts import splitmix64
from tests.contracts import WORD
from tests.contracts import splitmix64 as published

GOLDEN = 0x9E3779B97F4A7C15


def test_a_row_has_its_number_of_the_published_generator_whose_state_is_the_hash_of_the_seed() -> None:
    assert published(0) == 0xE220A8397B1DCDAF  # the first output of the published code for the state 0
    for seed in (0, 7):
        state = published(seed * GOLDEN % WORD)
        expected = [published((state + row * GOLDEN) % WORD) for row in (0, 1, 10**9)]
        assert splitmix64(np.array([0, 1, 10**9]), seed).tolist() == expected
