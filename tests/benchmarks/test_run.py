"""The run of all benchmarks: which sections, what it writes, and what it says of targets and missing libraries."""

import json
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import __main__ as runner
from benchmarks import peers, timing


@pytest.fixture
def sections(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Two sections replace the real ones, and the second fails; the list holds how they were called."""
    called: list[bool] = []

    def run(quick: bool) -> dict[str, object]:
        called.append(quick)
        return {"ms": 1.5, "targets": [timing.target("time", 1.5, at_most=1.0)]}

    def fail(quick: bool) -> dict[str, object]:
        raise RuntimeError("out of memory")

    def table(results: dict[str, object]) -> str:
        return f"## A table\n\n{results['ms']} ms"

    first, second = SimpleNamespace(run=run, table=table), SimpleNamespace(run=fail, table=table)
    monkeypatch.setattr(runner, "SECTIONS", {"first": first, "second": second})
    monkeypatch.setattr(runner, "WITH_PEERS", set())
    return called


def test_what_was_measured_is_kept_though_a_later_section_fails(
    sections: list[bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--out", str(tmp_path / "results")])
    with pytest.raises(RuntimeError, match="out of memory"):
        runner.main()
    assert sections == [False]
    written = sorted(path.name for path in (tmp_path / "results").iterdir())
    date = written[0].removesuffix(".json")
    assert written == [f"{date}.json", f"{date}.md"]
    record = json.loads((tmp_path / "results" / f"{date}.json").read_text())
    assert record["sections"]["first"]["ms"] == 1.5 and record["about"]["date"] == date
    text = (tmp_path / "results" / f"{date}.md").read_text()
    assert "1.5 ms" in text and "| time | 1.5 | ≤ 1 | **no** |" in text
    for content in (text, json.dumps(record)):
        assert socket.gethostname() not in content.split() and str(runner.ROOT) not in content


def test_a_quick_or_partial_run_leaves_the_published_results_alone(
    sections: list[bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--quick", "--only", "first"])
    runner.main()
    assert sections == [True] and not (tmp_path / "results").exists()
    assert "## A table" in capsys.readouterr().out


def test_a_library_to_compare_with_that_is_missing_is_named_before_anything_runs(
    sections: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "WITH_PEERS", {"first"})
    library = SimpleNamespace(name="some-library", imported="a_module_that_nobody_has")
    monkeypatch.setattr(peers, "PEERS", (library,))
    monkeypatch.setattr(sys, "argv", ["benchmarks"])
    with pytest.raises(SystemExit, match="some-library not installed; `make bench`"):
        runner.main()
    assert sections == []


def test_sections_are_named_with_commas_or_spaces_and_run_in_their_own_order() -> None:
    expected = ["training", "search", "encode"]
    assert (
        runner.sections(["encode,training", "search"]) == runner.sections(["training", "search", "encode"]) == expected
    )
    assert runner.sections(["training,", "search, encode"]) == expected


def test_an_unknown_section_gets_one_line_that_lists_the_known_ones(
    sections: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--only", "first,secnd"])
    with pytest.raises(SystemExit) as end:
        runner.main()
    expected = "benchmarks: there is no section 'secnd' (did you mean 'second'?); there are first, second"
    assert end.value.code == expected and sections == []


@pytest.mark.parametrize(
    ("reached", "bounds", "cells"),
    [
        (0.95, {"at_least": 0.9, "at_most": 1.1}, "| 0.95 | ≥ 0.9, ≤ 1.1 | yes |"),
        (1.2, {"at_least": 0.9, "at_most": 1.1}, "| 1.2 | ≥ 0.9, ≤ 1.1 | **no** |"),
        (0.0, {"at_least": 0}, "| 0 | ≥ 0 | yes |"),
        (None, {"at_most": 0.3}, "| not measured | ≤ 0.3 |  |"),
    ],
)
def test_the_table_of_targets_says_met_missed_or_not_measured(
    reached: float | None, bounds: dict[str, float], cells: str
) -> None:
    record = {"sections": {"one": {"targets": [timing.target("a ratio", reached, **bounds)]}}}
    assert f"| a ratio {cells}" in runner.targets(record)
