"""Wide tables go through the stages in processes of their own, and a refusal is told with its reason."""

from typing import Any

import pytest

from benchmarks import wide


def test_the_cases_are_as_wide_as_they_say() -> None:
    found = wide.cases([3, 7], 500)
    assert [len(sizes) for _, sizes, _ in found.values()] == [3, 7, 4, 3, 4]
    assert max(found["500 values in a field"][1].values()) == found["500 values in a field"][0] == 500
    assert found["50 rows"][0] == 50 and found["a field of one value"][1]["same"] == 1


def test_a_stage_that_refuses_a_table_ends_its_case(monkeypatch: pytest.MonkeyPatch) -> None:
    def cases(*_: Any) -> dict[str, Any]:
        rare: dict[str, Any] = {"encode": {"min_count": 1000}}
        return {"wide": (400, {"a": 4, "b": 3}, {}), "rare": (400, {"a": 4, "b": 3}, rare)}

    monkeypatch.setattr(wide, "STAGES", ("ingest", "encode", "derive"))
    monkeypatch.setattr(wide, "cases", cases)
    found = wide.measure([], 0)
    assert [(row["case"], row["stage"], "refused" in row) for row in found] == [
        ("wide", "ingest", False),
        ("wide", "encode", False),
        ("wide", "derive", True),  # there was no search
        ("rare", "ingest", False),
        ("rare", "encode", True),
    ]
    assert all(row["processor"] > 0 and row["peak_mib"] > 10 for row in found if "refused" not in row)
    assert "min_count" in found[-1]["refused"] and found[-1]["refused"] in wide.table(found)
