from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, TypedDict

import pytest

from pipeline.workflow.plug import Least, check_options, check_value, names, plug


def test_a_name_with_dashes_finds_the_file_with_underscores():
    assert plug("datasets", "movielens-1m").__name__ == "pipeline.datasets.movielens_1m"


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(ValueError, match=r"no 'nope' in pipeline/datasets; there are avazu, criteo, "):
        plug("datasets", "nope")


@pytest.mark.parametrize("name", ["__init__", "../schema", ""])
def test_only_plugs_are_found(name):
    with pytest.raises(ValueError, match="in pipeline/datasets"):
        plug("datasets", name)


def test_every_data_set_has_read():
    for name in names("datasets"):
        assert callable(plug("datasets", name).read)


def some(path, *, label, genres="bag"):
    return path, label, genres


def test_options_are_those_of_the_signature():
    check_options(some, {"label": "y", "genres": "joined"}, "here")
    with pytest.raises(ValueError, match="here: no option 'genre'; valid are label, genres"):
        check_options(some, {"label": "y", "genre": "bag"}, "here")
    with pytest.raises(ValueError, match="here: option 'label' must be given"):
        check_options(some, {}, "here")
    with pytest.raises(ValueError, match="no option 'path'"):
        check_options(some, {"path": "x", "label": "y"}, "here")


class Window(TypedDict):
    low: Annotated[int, Least(0)]
    width: float | None


def typed(
    *,
    count: Annotated[int, Least(1)] = 1,
    share: float | None = None,
    by: Literal["time", "random", 1] = "random",
    columns: Sequence[str] = (),
    sets: Mapping[str, Sequence[int]] | None = None,
    whatever: Path | None = None,
):
    return count, share, by, columns, sets, whatever


@pytest.mark.parametrize(
    "options",
    [
        {"count": 3, "share": 0.5},
        {"share": 1, "by": "time"},
        {"share": None, "columns": ["a"], "by": 1},
        {"sets": {"a": [1, 2], "b": []}, "whatever": "p"},
    ],
)
def test_values_that_suit_the_signature_pass(options):
    check_options(typed, options, "here")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"count": 0}, "'count' must be a whole number of at least 1, however 0"),
        ({"count": 2.0}, "'count' must be a whole number of at least 1, however 2.0"),
        ({"count": True}, "'count' must be a whole number of at least 1, however True"),
        ({"count": "3"}, "'count' must be a whole number of at least 1, however '3'; without quotes"),
        ({"count": None}, "'count' must be a whole number"),
        ({"share": "1e-3"}, "a finite number or null, however '1e-3'; without quotes"),
        ({"share": float("inf")}, "a finite number or null, however inf"),
        ({"share": False}, "a finite number or null, however False"),
        ({"by": "date"}, r"one of \['time', 'random', 1\], however 'date'"),
        ({"by": True}, "one of"),
        ({"columns": "user"}, "'columns' must be a list, however 'user'"),
        ({"columns": ["user", 3]}, "a list, of which each is a text, however"),
        ({"sets": [1]}, "a mapping of names to values or null, however"),
        ({"sets": {"a": [1], "b": 2}}, "a mapping, of which each value is a list or null, however"),
    ],
)
def test_values_that_do_not_suit_the_signature_are_refused(options, expected):
    with pytest.raises(ValueError, match=f"here: option .*{expected}"):
        check_options(typed, options, "here")
    with pytest.raises(ValueError, match="here must be a mapping of names to values, however"):
        check_options(typed, list(options), "here")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"low": 1}, "here: missing key 'width'; it has low, width"),
        ({"low": 1, "width": None, "high": 2}, "here: no key 'high'; it has low, width"),
        ({"low": -1, "width": None}, "here: low must be a whole number of at least 0, however -1"),
        (3, "here must be a mapping of names to values, however 3"),
    ],
)
def test_a_typed_dict_stands_for_a_mapping_of_just_its_keys(value, expected):
    check_value({"low": 1, "width": 2}, Window, "here")
    with pytest.raises(ValueError, match=expected):
        check_value(value, Window, "here")
