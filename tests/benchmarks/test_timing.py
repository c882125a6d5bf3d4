"""How steps are timed, and what the tables say of the times."""

from typing import Any

import numpy as np
import pytest

from benchmarks import timing


def test_the_time_of_a_step_is_taken_when_everything_that_it_began_is_done() -> None:
    order: list[str] = []
    timing.interleave({"a": lambda i: order.append(f"a{i}")}, rounds=1, warm_up=1, settle=lambda: order.append("done"))
    assert order == ["a0", "done", "a1", "done"]


def test_steps_take_turns_and_a_rare_one_has_its_turns_spread_over_the_rounds() -> None:
    order: list[str] = []
    steps = {name: lambda i, name=name: order.append(f"{name}{i}") for name in "ab"}
    taken = timing.interleave(steps, rounds=4, warm_up=2, fewer={"b": 2})
    assert order == ["a0", "a1", "b1", "a2", "b2", "a3", "a4", "b4", "a5"]
    assert np.isnan(taken["b"]).tolist() == [False, True, False, True] and not np.isnan(taken["a"]).any()


def test_a_ratio_is_the_median_of_the_ratios_within_a_round() -> None:
    reference = np.array([10.0, 20.0, 40.0, 80.0])
    taken = {"plain": reference, "rare": np.array([30.0, np.nan, 40.0, np.nan])}
    entries = timing.summary(taken, "plain", batch_size=500)
    assert entries["rare"]["ratio"] == pytest.approx((3 + 1) / 2)  # of the medians it would be 35 / 30
    assert entries["rare"]["rounds"] == 2 and entries["rare"]["median"] == 35
    assert entries["plain"]["samples/s"] == pytest.approx(500 / 0.030)


@pytest.mark.parametrize(
    ("reached", "bounds", "met"),
    [(None, {"at_least": 5}, None), (5.0, {"at_least": 5}, True), (2.0, {"at_most": 1.5}, False)],
)
def test_a_target_that_was_not_measured_is_neither_met_nor_missed(
    reached: float | None, bounds: dict[str, Any], met: bool | None
) -> None:
    assert timing.target("speed", reached, **bounds)["met"] is met


def test_a_table_shows_three_digits_and_leaves_out_what_is_not_there() -> None:
    text = timing.markdown(("step", "ms", "rows"), [("a", 0.12345, 12_345), ("b", float("nan"), None)])
    assert text.splitlines() == [
        "| step | ms | rows |",
        "| --- | ---: | ---: |",
        "| a | 0.123 | 12,345 |",
        "| b |  |  |",
    ]
