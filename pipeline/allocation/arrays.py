"""Arrays as JSON, for the findings of a search and for allocations."""

from __future__ import annotations

import base64
import binascii
import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

KEYS = {"dtype", "shape", "zlib"}


def encoded(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Arrays as JSON values; equal arrays give equal text."""
    return {name: _encoded(np.asarray(array, order="C")) for name, array in sorted(arrays.items())}


def _encoded(array: np.ndarray) -> dict[str, Any]:
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    text = base64.b64encode(zlib.compress(little.tobytes(), 6)).decode()
    return {"dtype": little.dtype.str, "shape": list(array.shape), "zlib": text}


def decoded(record: Mapping[str, Any], most: int | None = None) -> dict[str, np.ndarray]:
    """The arrays that `encoded` wrote; they are read-only.

    Args:
        record: of `encoded`.
        most: bytes of an array that would be a mistake; they are not unpacked. None for no limit.

    Raises:
        ValueError: naming an array that `encoded` cannot have written.
    """
    arrays = {}
    for name, value in record.items():
        try:
            arrays[name] = _decoded(value, most)
        except (ValueError, TypeError, zlib.error, binascii.Error) as error:
            raise ValueError(f"array {name!r} is broken: {error}") from error
    return arrays


def most_bytes(rows: int) -> int:
    """More bytes than any method has in an array for tables of so many rows: 64 MiB, or 1,024 floats for each row."""
    return max(1 << 26, 4096 * rows)


def _decoded(value: Mapping[str, Any], most: int | None) -> np.ndarray:
    if set(value) != KEYS:
        raise ValueError(f"its keys must be {sorted(KEYS)}, got {sorted(value)}")
    kind, shape = np.dtype(value["dtype"]), value["shape"]
    if kind.kind not in "biuf":
        raise ValueError(f"its type must be bool, a whole number or a float, got {value['dtype']!r}")
    if not isinstance(shape, list) or any(type(length) is not int or length < 0 for length in shape):
        raise ValueError(f"its shape must be a list of whole numbers of at least 0, got {shape!r}")
    size = math.prod(shape) * kind.itemsize
    if most is not None and size > most:
        raise ValueError(f"it must have at most {most:,} bytes, got shape {shape} of {kind}")
    unpacker = zlib.decompressobj()
    data = unpacker.decompress(base64.b64decode(value["zlib"], validate=True), size + 1)  # never more than one too many
    if len(data) != size or not unpacker.eof:
        raise ValueError(f"it must unpack to {size:,} bytes, for shape {shape} of {kind}")
    return np.frombuffer(data, kind).reshape(shape)
