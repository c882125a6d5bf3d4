"""Budgets as a person writes them, and the largest number whose bytes fit."""

import pytest

from pipeline.allocation.budget import in_bytes, largest


def test_a_budget_is_bytes_or_a_share() -> None:
    for budget, expected in ((2, 2), (5000, 5000), (0.25, 250), (1.0, 1000), (0.0015, 1)):
        assert in_bytes(budget, 1000) == expected
    for wrong in (0, 1, -5, 0.0, 1.5, -0.1, True, "0.5", None, float("nan")):
        with pytest.raises(ValueError, match=f"a budget must be a whole number of bytes above 1, .* got {wrong!r}"):
            in_bytes(wrong, 1000)


def test_the_largest_number_within_a_limit_is_found_and_a_limit_below_the_least_is_refused() -> None:
    def size(n: int) -> int:
        return 100 + 12 * n

    assert [largest(size, 50, limit, "robe") for limit in (112, 123, 124, 699, 700, 10**9)] == [1, 1, 2, 49, 50, 50]
    with pytest.raises(ValueError, match="robe: 111 bytes are too few, the least is 112; raise the budget"):
        largest(size, 50, 111, "robe")
