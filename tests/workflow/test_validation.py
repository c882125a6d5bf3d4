"""What a person wrote is checked, and what is wrong with it is said in one line."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import pytest

from pipeline.workflow.validation import (
    AsTuple,
    Budget,
    Count,
    Fraction,
    Rate,
    Section,
    Whole,
    checked_options,
    suggestion,
    validated,
    words,
)


class Inner(Section):
    lr: Rate
    steps: Count | None = None
    sets: str | dict[str, str] = "small"


class Outer(Section):
    inner: Inner
    seeds: Annotated[tuple[Whole, ...], AsTuple] = (0,)
    by: Literal["time", "random"] = "random"
    budget: Budget | None = None
    share: Fraction = 0.5
    deep: bool = False


GOOD: dict[str, Any] = {"inner": {"lr": 0.1}, "seeds": [1, 2]}
WRONG = {
    "a number in quotes": (
        {"inner": {"lr": "0.1"}},
        "inner.lr must be a number of at least 0, got '0.1'; write it wit",
    ),
    "a number that is no number": ({"inner": {"lr": float("nan")}}, "inner.lr must be a number of at least 0, got nan"),
    "a number too small": ({"inner": {"lr": -1}}, "inner.lr must be a number of at least 0, got -1"),
    "true for a number": (
        {"inner": {"lr": 1, "steps": True}},
        "inner.steps must be a whole number of at least 1 or null, got true",
    ),
    "a union, told once": (
        {"inner": {"lr": 1, "sets": 3}},
        "here: inner.sets must be a text or a mapping of names to texts, got 3",
    ),
    "an item of a list": ({**GOOD, "seeds": [0, -1]}, "here: seeds[1] must be a whole number of at least 0, got -1"),
    "no list": ({**GOOD, "seeds": "0"}, "here: seeds must be a list of whole numbers of at least 0, got '0'"),
    "a word that is not offered": ({**GOOD, "by": "date"}, "here: by must be one of time, random, got 'date'"),
    "a share without a point": (
        {**GOOD, "budget": 1},
        "here: budget must be a whole number of bytes above 1, or a share",
    ),
    "a budget of another kind": ({**GOOD, "budget": "25%"}, "tables' bytes from above 0.0 to 1.0 or null, got '25%'"),
    "a fraction of all": ({**GOOD, "share": 1.0}, "here: share must be a number of at least 0 and below 1, got 1.0"),
    "text for a truth": ({**GOOD, "deep": "yes"}, "here: deep must be true or false, got 'yes'"),
    "a foreign key": (
        {**GOOD, "sedes": 1},
        "here: there is no 'sedes' (did you mean 'seeds'?); valid are inner, seeds, ",
    ),
    "a foreign key inside": (
        {"inner": {"lr": 1, "rate": 2}},
        "here: inner: there is no 'rate'; valid are lr, steps, sets",
    ),
    "a missing key": ({"inner": {}}, "here: inner: 'lr' is missing"),
    "no mapping": ({"inner": 3}, "here: inner must be a mapping with the keys lr, steps, sets, got 3"),
    "all of them at once": ({"seeds": [0.5], "by": 1}, "'inner' is missing; seeds[0] must be a whole number"),
}


def test_what_is_right_is_taken_as_it_is_and_cannot_be_changed() -> None:
    values = validated(Outer, {**GOOD, "budget": 0.25}, "here")
    assert values.inner.lr == 0.1 and values.seeds == (1, 2) and values.budget == 0.25
    assert validated(Outer, {**GOOD, "budget": 1000}, "here").budget == 1000
    with pytest.raises(ValueError, match="frozen"):
        values.share = 0.1  # type: ignore[misc]


@pytest.mark.parametrize(("value", "said"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named_with_what_is_right(value: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as refused:
        validated(Outer, value, "here")
    assert str(refused.value).startswith("here: ") and said in str(refused.value)
    assert "\n" not in str(refused.value)


def some(
    path: str,
    *,
    label: str,
    count: Count = 1,
    columns: Sequence[str] = (),
    whatever: Any = None,
    inner: Inner | None = None,
) -> None: ...


def other(*, rate: Rate = 0.1) -> None: ...


def test_options_are_the_keywords_of_some_functions() -> None:
    assert checked_options([some, other], {"label": "y", "rate": 1, "columns": ["a"]}, "here") == {
        "label": "y",
        "rate": 1.0,
        "columns": ["a"],
    }
    options = checked_options([some], {"label": "y", "inner": {"lr": 0.5}}, "here")
    assert options["inner"] == Inner(lr=0.5)
    for given, said in (
        ({"label": "y", "path": "x"}, "here: there is no 'path'; valid are label, count, columns, whatever, inner"),
        ({}, "here: 'label' is missing"),
        ({"label": "y", "count": 0}, "here: count must be a whole number of at least 1, got 0"),
        ({"label": "y", "columns": "user"}, "here: columns must be a list of texts, got 'user'"),
        ({"label": "y", "inner": {"lr": -1}}, "here: inner.lr must be a number of at least 0, got -1"),
        (
            {"label": "y", "inner": {"lr": 1, "set": 1}},
            "here: inner: there is no 'set' (did you mean 'sets'?)",
        ),
        (["label"], "here must be a mapping of names to values, got ['label']"),
    ):
        with pytest.raises(ValueError) as refused:
            checked_options([some], given, "here")
        assert said in str(refused.value)


def test_types_have_words() -> None:
    assert words(dict[str, Sequence[int]]) == "a mapping of names to lists of whole numbers"
    assert words(Mapping[str, float] | None) == "a mapping of names to numbers or null"
    assert words(bytes) == "a value"


def test_a_near_name_is_suggested_and_a_far_one_is_not() -> None:
    assert suggestion("autodimm", ["autodim", "full"]) == " (did you mean 'autodim'?)"
    assert suggestion("xyz", ["autodim", "full"]) == ""
