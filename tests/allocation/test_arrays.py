"""Arrays as JSON: they are read back unchanged, equal arrays give equal text, and nothing else is read as an array."""

import base64
import itertools
import json
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest

from pipeline.allocation.arrays import decoded, encoded

DTYPES = ["bool", "uint8", "int16", "int32", "int64", "float16", "float32", "float64"]


def read_back(array: np.ndarray) -> np.ndarray:
    return decoded(json.loads(json.dumps(encoded({"a": array}), allow_nan=False)))["a"]


def test_arrays_are_read_back_with_their_type_shape_and_numbers() -> None:
    for dtype, shape in itertools.product(DTYPES, [(), (5,), (3, 4), (2, 3, 4), (0,), (4, 0)]):
        array = np.asarray(np.random.default_rng(0).integers(0, 100, shape)).astype(dtype)
        again = read_back(array)
        assert again.dtype == array.dtype and again.shape == array.shape, (dtype, shape)
        assert np.array_equal(again, array), (dtype, shape)


def test_numbers_that_json_does_not_have_are_read_back_too() -> None:
    array = np.array([np.nan, np.inf, -np.inf, -0.0, 5e-324])
    again = read_back(array)
    assert np.array_equal(again, array, equal_nan=True) and np.signbit(again[3])


def test_equal_arrays_give_equal_text_for_every_memory_layout_and_order_of_names() -> None:
    a, b = np.arange(12, dtype=np.int32).reshape(3, 4), np.arange(3.0)
    text = json.dumps(encoded({"a": a, "b": b}))
    assert json.dumps(encoded({"b": b, "a": np.asfortranarray(a)})) == text
    assert json.dumps(encoded({"a": np.repeat(a, 2, axis=1)[:, ::2], "b": b})) == text
    assert json.dumps(encoded({"a": a.astype(">i4"), "b": b.astype(">f8")})) == text
    assert json.dumps(encoded({"a": a.astype(np.int64), "b": b})) != text


def test_no_arrays_are_an_empty_mapping() -> None:
    assert encoded({}) == {} and decoded({}) == {}


def test_decoded_arrays_are_read_only() -> None:
    again = read_back(np.arange(3))
    with pytest.raises(ValueError, match="read-only"):
        again[0] = 1


GOOD = encoded({"a": np.arange(6).reshape(2, 3)})["a"]


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ({**GOOD, "shape": [2, 4]}, "must unpack to"),
        ({**GOOD, "shape": ["two"]}, "its shape must be a list"),
        ({**GOOD, "dtype": "nope"}, "nope"),
        ({**GOOD, "dtype": "<i4"}, "must unpack to"),
        ({**GOOD, "zlib": GOOD["zlib"][:-8]}, "."),
        ({**GOOD, "zlib": "no base64!"}, "."),
        ({**GOOD, "zlib": "AAAA"}, "decompress"),
        ({"dtype": "<i8", "shape": [6]}, r"its keys must be .* got \['dtype', 'shape'\]"),
        ({**GOOD, "more": 1}, "'more'"),
        ({**GOOD, "dtype": "|O"}, r"its type must be bool, a whole number or a float, got '\|O'"),
        ({**GOOD, "dtype": "<M8[D]"}, "its type must be bool"),
        ({**GOOD, "shape": [-2, -3]}, "its shape must be a list of whole numbers of at least 0"),
        ({**GOOD, "shape": [2, 3, True]}, "its shape must be a list of whole numbers"),
        ({**GOOD, "shape": 6}, "its shape must be a list"),
        ([1, 2, 3], "its keys must be"),
        (7, "not iterable"),
        (None, "not iterable"),
    ],
)
def test_a_value_that_is_not_an_array_is_refused_by_its_name(value: Any, why: str) -> None:
    with pytest.raises(ValueError, match=rf"(?s)array 'weights' is broken: .*{why}"):
        decoded({"weights": value})


def bomb(size: int) -> str:
    """The packed text of so many zeros."""
    packer = zlib.compressobj(9)
    pieces = [packer.compress(bytes(1 << 20)) for _ in range(size >> 20)]
    return base64.b64encode(b"".join([*pieces, packer.flush()])).decode()


@pytest.mark.parametrize("shape", [[6], [1 << 26], [1 << 62, 1 << 62]])
def test_an_array_that_unpacks_to_far_more_than_it_should_takes_no_memory(shape: list[int]) -> None:
    packed = bomb(1 << 26)
    tracemalloc.start()
    with pytest.raises(ValueError, match="array 'a' is broken: it must"):
        decoded({"a": {"dtype": "|u1", "shape": shape, "zlib": packed}}, most=1000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 21
