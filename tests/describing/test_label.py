"""Which column is the label, and which of its values means 1."""

from typing import Any

import numpy as np
import pytest

from pipeline.describing.column import Column
from pipeline.describing.label import label_of
from tests.describing.columns import column

OTHERS = {"sex": ["m", "f"], "user": ["a", "b", "c"]}


def columns(**values: Any) -> dict[str, Column]:
    return {name: column(cells * 20, name) for name, cells in {**OTHERS, **values}.items()}


@pytest.mark.parametrize(
    "name", ["click", "is_clicked", "Target", "y", "label", "converted", "is_fraud", "userResponse", "has_left"]
)
def test_the_label_is_the_column_of_two_values_that_is_named_like_one(name: str) -> None:
    assert label_of(columns(**{name: ["0", "1"]}), None, None).name == name


def test_a_column_of_more_values_is_no_label_by_its_name_alone() -> None:
    with pytest.raises(ValueError, match=r"with --label \(make: LABEL=...\); these have two values: 'sex' \(m, f\)"):
        label_of(columns(label=["1", "2", "3"]), None, None)


def test_several_labels_are_listed() -> None:
    with pytest.raises(ValueError, match=r"name the column of the label .*: 'click' \(0, 1\); 'target' \(a, b\)"):
        label_of(columns(click=["0", "1"], target=["a", "b"]), None, None)
    with pytest.raises(ValueError, match=r"no column has two values.*; there are 'user'$"):
        label_of({"user": column(["a", "b", "c"], "user")}, None, None)


@pytest.mark.parametrize(
    ("values", "positive"),
    [
        (["0", "1", "0"], None),
        ([0, 1, 0], None),
        ([0.0, 1.0, 0.0], None),
        ([False, True, False], None),
        (["no", "yes", "yes"], "yes"),
        (["False", "True", "True"], "True"),
        (["0.0", "1.0"], "1.0"),
        (["1", "2", "1"], "2"),
        ([-1, 1], "1"),
        (["<=50K", ">50K", "<=50K"], ">50K"),
    ],
)
def test_1_is_a_word_for_it_or_the_larger_number_or_the_rarer_text(values: list[Any], positive: str | None) -> None:
    label = label_of(columns(label=values), None, None)
    assert label.positive == positive
    assert label.values[:2].tolist() == [0, 1]
    assert label.mean == pytest.approx(np.mean(label.values))


def test_the_user_may_name_the_column_and_the_value() -> None:
    label = label_of(columns(stars=["3", "4", "5", "4"]), "stars", "5")
    assert (label.name, label.positive, label.mean) == ("stars", "5", 0.25)
    label = label_of(columns(click=["0", "1", "1"]), None, "0")
    assert label.positive == "0" and label.mean == pytest.approx(1 / 3)
    assert label_of(columns(click=["0", "1"]), "sex", None).name == "sex"


def test_wrong_names_and_values_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"--label: there is no column 'sexx' \(did you mean 'sex'\?\); there are 'sex'"
    ):
        label_of(columns(), "sexx", None)
    with pytest.raises(ValueError, match=r"label 'user' must have two values, got 'a', 'b', 'c'; .*--positive"):
        label_of(columns(), "user", None)
    with pytest.raises(ValueError, match=r"--positive must be a value of column 'sex', got 'x'; it has 'm', 'f'"):
        label_of(columns(), "sex", "x")


def test_rows_without_a_label_are_neither_0_nor_1() -> None:
    label = label_of({"click": column(["0", "1", None, "1"], "click")}, None, None)
    assert np.isnan(label.values[2]) and label.mean == pytest.approx(2 / 3)
