"""Arrays as JSON, for the findings of a search and for allocations."""

from __future__ import annotations

import base64
import binascii
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


def decoded(record: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays that `encoded` wrote; they are read-only.

    Raises:
        ValueError: naming an array that `encoded` cannot have written.
    """
    arrays = {}
    for name, value in record.items():
        try:
            if set(value) != KEYS:
                raise ValueError(f"its keys must be {sorted(KEYS)}, got {sorted(value)}")
            data = zlib.decompress(base64.b64decode(value["zlib"], validate=True))
            arrays[name] = np.frombuffer(data, np.dtype(value["dtype"])).reshape(value["shape"])
        except (ValueError, TypeError, zlib.error, binascii.Error) as error:
            raise ValueError(f"array {name!r} is broken: {error}") from error
    return arrays
