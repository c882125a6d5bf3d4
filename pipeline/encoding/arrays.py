"""A .npy file that is written in pieces."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np


class ArrayFile:
    """A .npy file of known shape, written in pieces along its first axis.

    Args:
        path: of the file; its folder is created.
        dtype: in NumPy's notation, e.g. "<i4".
        shape: of the whole array.
    """

    def __init__(self, path: Path, dtype: str, shape: tuple[int, ...]) -> None:
        self.dtype = np.dtype(dtype)
        path.parent.mkdir(exist_ok=True)
        self.file = path.open("wb")
        self.digest = hashlib.sha256()
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": dtype, "fortran_order": False, "shape": shape})
        self._write(header.getbuffer())

    def __enter__(self) -> ArrayFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    @property
    def sha256(self) -> str:
        """Checksum of the bytes written so far."""
        return self.digest.hexdigest()

    def append(self, array: np.ndarray) -> None:
        """Write the next piece."""
        if array.size:
            self._write(np.ascontiguousarray(array, dtype=self.dtype).data.cast("B"))

    def _write(self, data: memoryview) -> None:
        self.file.write(data)
        self.digest.update(data)
