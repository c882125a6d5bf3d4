"""The section on coding measures every step, and its targets follow from what was measured."""

import json

from benchmarks import __main__ as runner
from benchmarks import coding


def test_every_step_is_measured_and_is_in_the_table() -> None:
    results = coding.results(coding.measure(values=40_000, calibrated=4000))
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    steps = [coding.CALIBRATION, coding.PREDICTION, *(f"{coding.CHOICE}, {b:.1%}" for b in coding.BUDGETS)]
    assert list(results["steps"]) == [*steps, coding.ENCODING]
    text = coding.table(results)
    assert text.startswith("## Coding") and all(f"| {name} |" in text for name in results["steps"])
    losses = [choice["predicted loss"] for choice in results["choices"].values()]
    assert losses == sorted(losses) and losses[0] > 0  # fewer bytes lose more
    assert runner.SECTIONS["coding"] is coding


def test_the_targets_are_all_seconds_and_the_largest_memory_beside_the_tables() -> None:
    steps = {"one": {"seconds": 100.0, "MiB": 500.0}, "two": {"seconds": 90.0, "MiB": 350.0}}
    results = coding.results({"steps": steps, "MiB": {"before": 200.0, "table": 160.0}})
    assert [(target["reached"], target["met"]) for target in results["targets"]] == [(190.0, False), (1.875, True)]
