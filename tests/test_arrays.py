"""Arrays in JSON: what is written comes back, in one text only, and nothing else is taken for an array."""

import json
from typing import Any

import numpy as np
import pytest

from pipeline.allocation.arrays import decoded, encoded

DTYPES = ["bool", "uint8", "int16", "int32", "int64", "float16", "float32", "float64"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (2, 3, 4), (0,), (4, 0)])
def test_arrays_come_back_with_their_type_shape_and_numbers(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.asarray(np.random.default_rng(0).integers(0, 100, shape)).astype(dtype)
    text = json.dumps(encoded({"mask": array}), allow_nan=False)
    found = decoded(json.loads(text))["mask"]
    assert found.dtype == array.dtype and found.shape == array.shape and np.array_equal(found, array)


def test_numbers_that_json_does_not_know_come_back_too() -> None:
    array = np.array([np.nan, np.inf, -np.inf, -0.0, 5e-324])
    found = decoded(json.loads(json.dumps(encoded({"a": array}), allow_nan=False)))["a"]
    assert np.array_equal(found, array, equal_nan=True) and np.signbit(found[3])


def test_equal_arrays_give_equal_text_however_they_lie_in_memory_and_in_whatever_order_they_are_named() -> None:
    a, b = np.arange(12, dtype=np.int32).reshape(3, 4), np.arange(3.0)
    text = json.dumps(encoded({"a": a, "b": b}))
    assert json.dumps(encoded({"b": b, "a": np.asfortranarray(a)})) == text
    assert json.dumps(encoded({"a": np.repeat(a, 2, axis=1)[:, ::2], "b": b})) == text
    assert json.dumps(encoded({"a": a.astype(">i4"), "b": b.astype(">f8")})) == text
    assert json.dumps(encoded({"a": a.astype(np.int64), "b": b})) != text


def test_no_arrays_are_no_arrays() -> None:
    assert encoded({}) == {} and decoded({}) == {}


def test_what_was_decoded_cannot_be_written_to() -> None:
    found = decoded(encoded({"a": np.arange(3)}))["a"]
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 1


GOOD = encoded({"a": np.arange(6).reshape(2, 3)})["a"]


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ({**GOOD, "shape": [2, 4]}, "cannot reshape"),
        ({**GOOD, "shape": ["two"]}, "."),
        ({**GOOD, "dtype": "nope"}, "nope"),
        ({**GOOD, "dtype": "<i4"}, "cannot reshape"),
        ({**GOOD, "zlib": GOOD["zlib"][:-8]}, "."),
        ({**GOOD, "zlib": "no base64!"}, "."),
        ({**GOOD, "zlib": "AAAA"}, "decompress"),
        ({"dtype": "<i8", "shape": [6]}, r"has the keys \['dtype', 'shape'\] instead of"),
        ({**GOOD, "more": 1}, "'more'"),
        ([1, 2, 3], "has the keys"),
        (7, "not iterable"),
        (None, "not iterable"),
    ],
)
def test_what_is_no_array_is_refused_by_its_name(value: Any, why: str) -> None:
    with pytest.raises(ValueError, match=rf"(?s)array 'weights' is broken: .*{why}"):
        decoded({"weights": value})
