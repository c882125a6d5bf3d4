"""The section on methods takes each of them through its stages, and says which failed, and why."""

import json
from pathlib import Path

import pytest

from benchmarks import __main__ as runner
from benchmarks import methods
from pipeline.data.schema import Field, Schema
from pipeline.workflow.plug import names

SCHEMA = Schema((Field("a", 300), Field("b", 120), Field("c", 5)))
BATCH = 32


@pytest.fixture
def encoded(tmp_path: Path) -> Path:
    folder = tmp_path / "encoded"
    folder.mkdir()
    assert methods.write(SCHEMA, BATCH, folder).startswith("3 fields, 425 values")
    return folder


@pytest.mark.parametrize(
    ("name", "finds"),
    [
        ("autodim", "supernet"),
        ("autodim_s", "supernet"),
        ("lma", "arrays"),
        ("random_search", "proposals"),
        ("dpq", ""),
    ],
)
def test_a_method_goes_through_its_stages_and_its_steps_are_compared_with_the_plain_one(
    name: str, finds: str, encoded: Path
) -> None:
    measured = methods.measure(name, str(encoded), rounds=3, batch_size=BATCH)
    assert set(measured["steps"]) == {"plain", "retraining"} | ({"search"} if finds == "supernet" else set())
    assert measured["steps"]["plain"]["ratio"] == 1 and measured["steps"]["retraining"]["rounds"] == 3
    assert 0 < measured["of full"] <= methods.BUDGET
    memory = measured["MiB"]
    assert 0 < memory["before"] <= memory["finding"] <= memory["all"]
    results = methods.results("A shape.", {name: measured})
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    assert f"| {name} | {finds} |" in methods.table(results)
    assert [target["met"] for target in results["targets"]] == [True, memory["all"] <= 8192]


def test_all_methods_but_the_plain_one_are_measured_in_a_section_of_all_benchmarks() -> None:
    assert set(methods.methods()) == set(names("methods")) - {"full"}
    assert runner.SECTIONS["methods"] is methods


def test_a_method_that_fails_is_named_with_its_reason_and_the_others_are_kept(tmp_path: Path) -> None:
    """A process of its own, as in a run; it finds no data."""
    failed = methods.measure_alone("uniform", tmp_path / "nowhere", rounds=1)
    assert "schema.json" in failed["failed"]
    steps = {kind: {"median": 2.0, "ratio": 1.0} for kind in ("plain", "retraining")}
    memory = {"before": 512.0, "finding": 1024.0, "all": 9 * 1024.0}
    sizes = {"bytes": 10, "of full": 0.2, "finding, s": 1.0, "finishing, s": 0.5}
    good = {"finds": "", "MiB": memory, "steps": steps, **sizes}
    results = methods.results("A shape.", {"one": good, "two": failed})
    text = methods.table(results)
    assert "| one |" in text and f"Failed: two: {failed['failed']}" in text
    assert [(target["reached"], target["met"]) for target in results["targets"]] == [(0.5, False), (9.0, False)]
    assert methods.results("A shape.", {"two": failed})["targets"][1]["met"] is None
