"""The report of the main job in Markdown, and the small tables that DVC plots."""

import copy
from typing import Any

import pytest

from pipeline.reporting import report
from pipeline.reporting.curve import knee
from tests.reporting.reports import DIMS, REPORT, form, judged, served


def changed(**changes: Any) -> dict[str, Any]:
    return copy.deepcopy(REPORT) | changes


def test_every_allocation_has_a_row_and_every_control_a_comparison() -> None:
    lines = report.markdown(REPORT).splitlines()
    assert lines[0].startswith("**Deploy ") and "clicks, fm, autodim, seeds [3, 5]" in lines
    assert "| allocation | AUC | logloss | bytes | of full | whole model | ms, 1 row | ms, 2,000 rows |" in lines
    assert "| searched | 0.7100 ± 0.0141 | 0.5000 ± 0.0283 | 2,000 | 25.0% | 6,000 | 0.25 | 12.50 |" in lines
    assert "| full | 0.7400 ± 0.0141 | 0.5000 ± 0.0283 | 8,000 | 100.0% | 24,000 | – | – |" in lines
    assert "| searched | 700 | 8.8% | 0.0100 | 0.25 | 12.50 |" in lines and "| full | – | – | – | – | – |" in lines
    one, two = (line for line in lines if line.startswith("- searched minus"))
    low, high = REPORT["comparisons"][0]["interval"]
    interval = f"({low:+.4f} to {high:+.4f})"
    beside = "over seeds and test rows, at 0.25 x its bytes (sizes differ)"
    assert one == f"- searched minus full: AUC -0.0300 {interval}, 95 %, {beside}"
    assert two == "- searched minus random: AUC +0.0200, no interval: it takes two seeds or more, at 1.00 x its bytes"
    assert "warning" not in report.markdown(REPORT) and "planted" not in report.markdown(REPORT)


def test_coded_tables_show_the_times_of_their_only_form() -> None:
    coded = changed()
    coded["allocations"]["searched"]["served"] = {"coded": served(2000, [0.70, 0.72], 0.0)}
    searched = [line for line in report.markdown(coded).splitlines() if line.startswith("| searched |")]
    assert searched[0].endswith("| 0.25 | 12.50 |") and searched[1] == "| searched | – | – | – | – | – |"


def test_without_any_form_for_serving_there_is_no_table_of_int8() -> None:
    plain = changed()
    plain["allocations"]["searched"]["served"] = {}
    text = report.markdown(plain)
    assert "| in int8 |" not in text and "| allocation | AUC | logloss | bytes | of full | whole model |\n" in text


def test_fields_of_the_searched_allocation_stand_by_bytes_the_undecided_first() -> None:
    lines = report.markdown(changed(undecided=["a"])).splitlines()
    start = lines.index("| field | cardinality | dimension | bytes | of the whole model | decided |")
    assert lines[start + 2 : start + 4] == ["| a | 5 | 1 | 400 | 6.7% | no |", "| b | 95 | 2 | 1,600 | 26.7% | yes |"]
    unknown = changed(scored=False)
    unknown["allocations"]["searched"]["bytes_per_field"] = None
    text = report.markdown(unknown)
    assert "| b | 95 | 2 | – | – | – |" in text and "so the bytes of a field are not known" in text


def test_of_many_fields_the_text_shows_those_with_the_most_bytes_and_says_how_many_are_left_out() -> None:
    names = {f"f{i}": i + 1 for i in range(500)}
    many = changed(cardinality=names)
    many["allocations"]["searched"] |= {"dims": dict.fromkeys(names, 1), "bytes_per_field": names}
    text = report.markdown(many)
    assert "**The searched fields.** The 40 fields with the most bytes; 460 fields more are in report.html." in text
    assert "| f460 |" in text and "| f459 |" not in text
    assert len(report.tables(many)[0].rows) == 500


@pytest.mark.parametrize("dims", [{"b": 2, "a": 1}, [{"a": 2, "b": 2}, DIMS]], ids=["of all seeds", "of one seed"])
def test_a_control_that_has_the_searched_dimensions_is_noticed(dims: Any) -> None:
    same = changed()
    same["allocations"]["random"] |= {"dims": dims, "bytes": 2000, "bytes_values": [1990, 2000]}
    assert "- warning: no real comparison with random: the same dimensions as searched" in report.markdown(same)


def test_an_undecided_search_is_noticed() -> None:
    text = report.markdown(changed(undecided=["a", "b"]))
    assert "- warning: the search did not decide on a, b" in text


def test_what_is_known_of_planted_data_is_said() -> None:
    known = {"planted": [], "rank_correlation": 0.876, "best_possible": 0.81234}
    assert "- best possible AUC 0.8123; dimension against planted rank: 0.88" in report.markdown(changed(**known))
    unknown = known | {"rank_correlation": None, "best_possible": None}
    assert "- dimension against planted rank: undefined" in report.markdown(changed(**unknown))


def summary(**changes: Any) -> dict[str, Any]:
    usual = {"kind": "categorical", "values": 1200, "ids": 900, "unknown": {"val": 0.125, "test": 0.25}}
    return usual | {"most_frequent": 0.5, "auc_alone": 0.6123, "warnings": []} | changes


def test_the_fields_are_listed_with_their_warnings() -> None:
    fields = {"a": summary(), "b": summary(auc_alone=None, warnings=["it has one value; leave it out"])}
    text = report.markdown(changed(data={"summaries": fields, "warnings": ["val has 12 rows"]}))
    assert "\n- warning: val has 12 rows\n- warning: b: it has one value; leave it out" in text
    said = text[text.index("**How the columns were encoded.**") :].splitlines()
    assert said[4:6] == [
        "| a | categorical | 1,200 | 900 | 12.5% | 25.0% | 50.0% | 0.612 |",
        "| b | categorical | 1,200 | 900 | 12.5% | 25.0% | 50.0% | – |",
    ]
    many = {f"f{n}": summary() for n in range(41)}
    text = report.markdown(changed(data={"summaries": many, "warnings": []}))
    assert "How the columns" not in text and "warning:" not in text
    one = report.markdown(changed(data={"summaries": many | {"b": fields["b"]}, "warnings": []}))
    assert "| b |" in one and "| f0 |" not in one and "- warning: b: it has one value" in one
    assert "41 fields without a warning are left out; `artifacts/encoded/fields.csv` has all." in one


DISTANCE = pytest.approx(0.01 / 2**0.5)  # standard deviation of two values that differ by 0.01


def means(auc: float, size: int, share: float) -> dict[str, Any]:
    return {"auc": pytest.approx(auc), "auc_sd": 0.01, "logloss": 0.5, "bytes": size, "of_full": share}


def test_metrics_say_what_to_deploy_and_the_means_and_points_are_the_seeds() -> None:
    assert report.metrics(REPORT) == {
        "deploy": {"form": "full, coded", "auc": 0.735, "auc_sd": DISTANCE, "bytes": 300, "of_full": 0.0375},
        "searched": {**means(0.71, 2000, 0.25), "int8_auc": pytest.approx(0.7), "int8_bytes": 700},
        "full": means(0.74, 8000, 1.0),
        "random": means(0.695, 2005, 0.250625),
    }
    points = [tuple(point.values()) for point in report.points(REPORT)]
    assert [*report.points(REPORT)[0]] == ["allocation", "seed", "bytes", "objective"]
    assert points == [
        *(("searched", 3, 2000, 0.70), ("searched", 5, 2000, 0.72)),
        *(("full", 3, 8000, 0.73), ("full", 5, 8000, 0.75)),
        *(("random", 3, 2000, 0.68), ("random", 5, 2010, 0.71)),
    ]


def test_metrics_of_one_seed_have_no_standard_deviation() -> None:
    alone = judged([form("searched", 2000, [0.72], [0.71]), form("full", 8000, [0.75], [0.74])])
    alone["allocations"]["searched"]["metrics"]["auc"]["sd"] = None
    shown = report.metrics(alone)
    assert shown["deploy"] == {"form": "full", "auc": 0.74, "bytes": 8000, "of_full": 1.0}
    assert "auc_sd" not in shown["searched"]


def point(size: int, val: float, test: float) -> dict[str, Any]:
    figures = {"val": {"mean": val, "values": [val]}, "test": {"mean": test, "values": [test]}}
    return {"bytes": size, "ratio": size / 8000, **figures}


def block(rows: int, components: list[int], bits: list[int]) -> dict[str, Any]:
    return {"rows": rows, "lookups": 0.5, "components": components, "bits": bits}


def test_the_curve_names_its_knee_and_its_distance_from_the_full_models() -> None:
    points = [point(200, 0.70, 0.69), point(400, 0.7397, 0.7401), point(800, 0.741, 0.742)]
    fields = {"a": [block(5, [2, 3], [6, 8]), block(95, [1, 1], [2, 2])], "b": [block(3, [3, 3], [12, 14])]}
    kept = {"fields": fields, "agreement": 0.987}
    drawn = {"points": points, "full": {"val": {"mean": 0.74}, "test": {"mean": 0.74}}, "knee": 1, "deserved": kept}
    lines = report.markdown(changed(curve=drawn)).splitlines()
    assert "| full, coded | of full | AUC on val | AUC on test | test minus full |" in lines
    assert "| 200 bytes | 2.5% | 0.7000 | 0.6900 | -0.0500 |" in lines
    assert "| 400 bytes (knee) | 5.0% | 0.7397 | 0.7401 | +0.0001 |" in lines
    assert "| components / bits, coded at 5.0% | values | most frequent | least frequent | autodim |" in lines
    assert f"| a | 100 | 2.5 / 7 | 1 / 2 | {DIMS['a']} |" in lines
    assert f"| b | 3 | 3 / 13 | – | {DIMS['b']} |" in lines
    said = "the 2 full models agree on their components by field and block: correlation 0.99, weighted by bytes"
    assert f"- {said}" in lines
    assert said not in report.markdown(changed(curve=drawn | {"knee": None, "deserved": None}))
    assert [knee(drawn, tolerance) for tolerance in (0.0001, 0.0005, 0.1)] == [2, 1, 0]
    assert knee(drawn | {"points": points[:1]}, 0.0005) is None
