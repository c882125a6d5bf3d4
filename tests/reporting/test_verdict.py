"""What a report says first: what to deploy, what the search is worth, and what would make the answer surer."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from scipy import stats

from pipeline.metrics.difference import Difference, difference
from pipeline.reporting.forms import CODED, INT4, INT8, Form, deploy
from pipeline.reporting.verdict import unequal, verdict
from tests.reporting.reports import form, judged

SEEDS = (-0.001, 0.0, 0.001)


def around(middle: float, off: Sequence[float] = SEEDS) -> list[float]:
    return [middle + one for one in off]


def model(name: str, size: int, val: float, test: float, kind: str = "as trained", **more: bool) -> Form:
    """Three seeds near each other, around a mean on val and one on test."""
    return form(name, size, around(val), around(test), kind, **more)


FULL, SEARCHED = model("full", 8000, 0.75, 0.74), model("searched", 2000, 0.7499, 0.735)
UNIFORM = model("uniform", 2000, 0.73, 0.72)


def points(report: dict[str, object]) -> dict[str, str]:
    return dict(verdict(report).points)


# --- what to deploy


def test_the_smallest_form_near_to_full_on_val_is_deployed_whatever_the_test_rows_say() -> None:
    small = model("searched", 700, 0.7496, 0.70, INT8)
    report = judged([SEARCHED, small, FULL, UNIFORM])
    said = verdict(report)
    assert said.headline == "Deploy searched in int8: 700 bytes of tables in place of 8,000 (8.8%; whole model: 8.8%)."
    assert said.markdown().startswith(
        f"**{said.headline}**\n\n- **On test.** AUC 0.7000, and 0.7400 of full: -0.0400 ("
    )
    assert "The whole model takes 2,100 bytes in place of 24,000." in points(report)["On test"]
    assert (
        "of 4 forms, the smallest whose AUC is less than 0.0005 below that of full: 0.7496 and 0.7500."
        in (points(report)["Choice"])
    )
    assert "it loses more than the 0.0005 that are allowed" in points(report)["On test"]


def test_full_is_deployed_if_nothing_smaller_is_near_to_it() -> None:
    report = judged([model("searched", 2000, 0.7, 0.9), FULL, UNIFORM])
    said = verdict(report)
    assert said.headline == "Deploy full, 8,000 bytes of tables: nothing smaller keeps its AUC on val."
    assert points(report)["On test"] == "AUC 0.7400. The whole model takes 24,000 bytes."


def test_a_larger_form_that_is_better_on_val_is_named() -> None:
    best = model("searched", 2000, 0.76, 0.751)
    coded = model("full", 100, 0.7498, 0.74, CODED)
    said = points(judged([best, FULL, coded, UNIFORM]))["Choice"]
    assert said.endswith("searched is the best on val: 0.7600 in 2,000 bytes, 0.7510 on test.")


def test_a_small_form_stands_beside_the_smallest_tables_of_one_dimension_that_are_as_good() -> None:
    coded = model("full", 100, 0.7498, 0.74, CODED)
    int4 = model("full", 1250, 0.7497, 0.74, INT4)
    words = "The smallest tables of one dimension that are as good, in float32, int8 or int4, are "
    for beside, named in (
        ([int4], "full in int4: 1,250 bytes, 12.5 times as many. This project has no packed file for int4."),
        (
            [model("full", 1250, 0.7, 0.74, INT4), model("uniform", 900, 0.7499, 0.7, INT8)],
            "uniform in int8: 900 bytes",
        ),
        ([], "full: 8,000 bytes, 80.0 times as many."),
    ):
        assert f"{words}{named}" in points(judged([SEARCHED, FULL, coded, UNIFORM, *beside]))["Choice"]
    assert words not in points(judged([model("searched", 2000, 0.7, 0.9), FULL, UNIFORM]))["Choice"]


def test_tables_in_int4_are_a_control_and_never_deployed() -> None:
    report = judged([SEARCHED, FULL, UNIFORM, model("full", 1250, 0.7499, 0.74, INT4)])
    assert report["deploy"] == "searched"
    assert "of 3 forms, the smallest" in points(report)["Choice"]
    assert "are full in int4: 1,250 bytes, 0.6 times as many." in points(report)["Choice"]
    missing = "There is no control of random dimensions, tables in int8 and coded full models."
    assert missing in points(report)["The search"]


def test_without_full_models_the_best_form_on_val_is_the_measure() -> None:
    report = judged([SEARCHED, UNIFORM])
    said = points(report)
    assert verdict(report).headline.startswith("Deploy searched: 2,000 bytes of tables in place of 8,000")
    assert "below the best, since there is no control full, searched: 0.7499 and 0.7499." in said["Choice"]
    assert said["On test"].startswith("AUC 0.7350. The whole model") and "Surer" not in said


def test_a_tolerance_of_zero_still_leaves_the_full_models() -> None:
    listed = judged([SEARCHED, FULL])["forms"]
    assert deploy(listed, 0.0) == "full" and deploy(listed, 0.001) == "searched"


def test_a_curve_without_a_knee_is_told() -> None:
    curve = {"points": [{}, {}], "knee": None}
    said = points(judged([SEARCHED, FULL, UNIFORM], curve=curve))["Choice"]
    assert "of 3 forms and 2 sizes of coded full models, the smallest" in said
    assert "Coded full models lose more at every size." in said


@pytest.mark.parametrize(
    ("kind", "packed", "words"),
    [
        (CODED, True, "`python -m stages.export artifacts/models/full/seed-0 model --budget 0.025` writes"),
        (INT8, True, "artifacts/models/full/seed-0 model --int8` writes the model of seed 0"),
        ("as trained", True, "artifacts/models/full/seed-0 model` writes the model of seed 0"),
        ("as trained", False, "artifacts/models/searched/seed-0 model --format trained` writes"),
    ],
)
def test_the_way_to_the_model_fits_its_form(kind: str, packed: bool, words: str) -> None:
    name = "full" if packed else "searched"
    report = judged(
        [
            form(name, 100, [0.75], [0.74], kind, packed=packed),
            *([] if name == "searched" else [form("searched", 2000, [0.7], [0.7])]),
            form("full", 8000, [0.75], [0.74]),
        ]
    )
    assert words in points(report)["How"]


# --- the search


def test_a_search_that_beats_one_dimension_is_said_to_and_one_that_loses_too() -> None:
    coded = model("full", 2001, 0.75, 0.76, CODED)
    said = points(judged([SEARCHED, FULL, UNIFORM, model("random", 2000, 0.73, 0.735), coded]))["The search"]
    assert "It is shown to be better than uniform (+0.0150, " in said
    assert "It is shown to be worse than full, coded (-0.0250, " in said
    assert "No difference is shown from random (+0.0000, " in said
    assert (
        "There is no control of tables in int8 and tables in int4." in said
        and "Holm-corrected for 3 comparisons" in said
    )


def test_a_difference_that_only_holds_before_correction_is_not_shown() -> None:
    searched = form("searched", 2000, around(0.75), around(0.7262, [0.0, 0.004, 0.008]))
    others = [form(name, 2000, around(0.7), around(0.7230)) for name in ("uniform", "random")]
    report = judged([searched, model("full", 8000, 0.75, 0.74), *others])
    p = [one["p_value"] for one in report["comparisons"] if one["against"] != "full"]
    assert max(p) < 0.1 and min(p) * 2 > 0.05, "the example lies between the two limits"
    assert "It is not shown to be better than any control" in points(report)["The search"]


def test_a_control_of_another_size_is_marked_and_one_of_the_same_size_is_not() -> None:
    others = [model("uniform", 2260, 0.73, 0.735), model("random", 2030, 0.73, 0.735)]
    said = points(judged([SEARCHED, FULL, *others, model("full", 5000, 0.74, 0.74, INT8)]))["The search"]
    uniform, rest = said.split("uniform (")[1].split(")", 1)
    assert uniform.endswith("; it has 13% more bytes") and "random (+0.0000" in rest
    assert "bytes" not in rest.split("random (")[1].split(")")[0] and "it has 2.5 times the bytes" in said
    assert [unequal(ratio) for ratio in (0.981, 1.019, 0.9, 3.0)] == ["", "", "10% fewer bytes", "3.0 times the bytes"]


def test_one_seed_shows_nothing_and_asks_for_more() -> None:
    forms = [form(name, size, [0.75], [0.74]) for name, size in (("searched", 2000), ("full", 8000), ("uniform", 2000))]
    said = points(judged(forms))
    assert "no interval: it takes two seeds or more" in said["On test"] and "interval covers" not in said["On test"]
    assert "There is no interval: it takes two seeds or more, for uniform (+0.0000)." in said["The search"]
    assert "`retrain.seeds` two seeds or more" in said["Surer"]


def test_a_control_with_the_searched_dimensions_is_no_control() -> None:
    report = judged([SEARCHED, FULL, UNIFORM])
    report["allocations"]["uniform"]["dims"] = report["allocations"]["searched"]["dims"]
    said = points(report)
    assert "There is no comparison with uniform: the dimensions are the same." in said["The search"]
    assert "uniform (" not in said["The search"] and "Surer, the search" not in said


def test_a_task_of_numbers_is_told_in_its_own_words() -> None:
    report = judged([SEARCHED, FULL, UNIFORM], metrics={"auc": "minus MSE"})
    assert "AUC" not in verdict(report).markdown() and "minus MSE" in verdict(report).markdown()


def test_what_is_undecided_comes_first_with_its_bytes_and_the_remedy() -> None:
    first, *_ = verdict(judged([SEARCHED, FULL, UNIFORM], undecided=["a"])).points
    assert first[0] == "Undecided" and first[1].startswith("a: the two best candidates are closer than")
    assert "This is about 20.0% of the searched bytes." in first[1] and "`search.epochs`" in first[1]
    many = [f"f{i}" for i in range(30)]
    report = judged([SEARCHED, FULL, UNIFORM], undecided=many)
    report["allocations"]["searched"]["bytes_per_field"] = None
    assert points(report)["Undecided"].startswith("f0, f1, f2, f3, f4, f5, f6, f7, f8, f9 and 20 others: the two best")


# --- what would make it surer


def test_the_number_of_seeds_that_it_names_decides_and_one_seed_less_does_not() -> None:
    off = [-0.02, 0.0, 0.023]
    searched = form("searched", 2000, around(0.7499), around(0.735, off))
    report = judged([searched, FULL, form("uniform", 2000, around(0.7), around(0.72))])
    said = points(report)["Surer, the search"]
    minus = next(one for one in report["comparisons"] if one["against"] == "uniform")
    number = int(said.split("about ")[1].split(" ")[0])
    assert "the limit is the seeds" in said and "in place of 3" in said

    def half(n: int) -> float:  # of n seeds; the rows add next to nothing here
        variance, rows = minus["seed_sd"] ** 2 / n, minus["row_se"] ** 2
        freedom = (variance + rows) ** 2 / (variance**2 / (n - 1))
        return float(stats.t.ppf(0.975, freedom)) * (variance + rows) ** 0.5

    assert half(number) <= minus["mean"] < half(number - 1)


def test_rows_that_limit_are_told_with_their_number() -> None:
    minus = Difference(0.001, (-0.002, 0.004), 0.5, 3, 1e-9, 0.0015)
    factor = minus.rows_for(0.001)
    assert factor == pytest.approx((1.96 * 0.0015 / 0.001) ** 2, rel=1e-3)
    uniform = {"against": "uniform", **minus.to_dict(), "bytes_ratio": 1.0}
    said = points(judged([SEARCHED, FULL, UNIFORM], comparisons=[uniform]))["Surer, the search"]
    assert "the limit is the test rows, with 100% of the variance: about 4,300 test rows in place of 500" in said


def test_users_that_limit_are_told_as_users() -> None:
    minus = Difference(0.001, (-0.002, 0.004), 0.5, 3, 1e-9, 0.0015, 200, "users")
    uniform = {"against": "uniform", **minus.to_dict(), "bytes_ratio": 1.0}
    said = points(judged([SEARCHED, FULL, UNIFORM], comparisons=[uniform]))["Surer, the search"]
    assert "the limit is the test users, with 100% of the variance: about 1,700 test users in place of 200" in said


def test_where_one_limit_alone_does_not_help_both_are_named() -> None:
    minus = difference([0.01, 0.0, 0.002], [0.0, 0.0, 0.0], 0.004**2, 500)
    assert minus.seeds_for(0.004) is None and minus.rows_for(0.004) is None
    uniform = {"against": "uniform", **minus.to_dict(), "bytes_ratio": 1.0}
    said = points(judged([SEARCHED, FULL, UNIFORM], comparisons=[uniform]))["Surer, the search"]
    assert "alone do not suffice, about" in said and "times the seeds and the test rows" in said


def test_a_question_that_is_settled_asks_for_nothing_more() -> None:
    same = form("searched", 2000, around(0.75), around(0.80))
    assert not [title for title in points(judged([same, FULL, UNIFORM])) if title.startswith("Surer")]
