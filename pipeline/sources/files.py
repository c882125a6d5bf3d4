"""Finds the files of a data set: plain, gzipped, in a zip, or in a folder."""

from __future__ import annotations

import codecs
import contextlib
import io
import itertools
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pyarrow as pa
import pyarrow.csv

from pipeline.sources.source import BadData, NotFound

GZIP_MARK = b"\x1f\x8b"
ENCRYPTED = 1  # the bit of a zip member's flags
LONGEST_LINE = 1 << 20  # bytes; a longer one is a missing line end, or no text
AGAIN = "the file is damaged or incomplete: download or copy it again"
# What the libraries raise for a damaged file, or for a zip with a compression that Python does not know.
DAMAGE = (OSError, EOFError, zlib.error, zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError)


@dataclass(frozen=True)
class DataFile:
    """A file, unpacked when read if it is gzipped; with ``member``, a file inside the zip at ``path``."""

    path: Path
    member: str | None = None

    def __str__(self) -> str:
        return str(self.path) if self.member is None else f"{self.path}:{self.member}"

    @contextlib.contextmanager
    def open(self) -> Iterator[pa.NativeFile]:
        """The unpacked bytes, as a stream."""
        with contextlib.ExitStack() as stack:
            if self.member is None:
                stream = stack.enter_context(pa.OSFile(str(self.path)))
            else:
                archive = stack.enter_context(zipfile.ZipFile(self.path))
                stream = pa.PythonFile(stack.enter_context(archive.open(self.member)), mode="r")
            mark = stream.read(len(GZIP_MARK))
            stream.seek(0)
            yield pa.CompressedInputStream(stream, "gzip") if mark == GZIP_MARK else stream

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Number, from 1, and bytes, without the line end, of every line; for small files and for diagnosis.

        Raises:
            BadData: if a line cannot be read, or is longer than `LONGEST_LINE`; the message names the first one.
        """
        number = 1
        try:
            with self.open() as stream:
                buffered = io.BufferedReader(stream, 1 << 20)
                for number in itertools.count(1):
                    line = buffered.readline(LONGEST_LINE + 2)  # with its end, "\r\n"
                    if not line:
                        return
                    line = line.rstrip(b"\r\n")
                    if len(line) > LONGEST_LINE:
                        raise BadData(
                            f"must be at most {LONGEST_LINE:,} bytes long",
                            file=self,
                            line=number,
                            value=line[:80],
                            remedy="add the missing line end, shorten the value, or give a text table",
                        )
                    yield number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        except DAMAGE as error:
            raise BadData(f"cannot be read ({error})", file=self, line=number, remedy=AGAIN) from error

    def first_line(self) -> bytes:
        """The bytes of the first line.

        Raises:
            BadData: if the file is empty.
        """
        for _, line in self.lines():
            return line
        raise BadData("is empty", file=self, remedy="the file is incomplete, or it is the wrong one")


def find(path: Path, names: Sequence[str], folder: str, remedy: str) -> DataFile:
    """The first of ``names``, plain or with ``.gz``, that exists at ``path``.

    Args:
        path: a folder, a zip, or the file itself under any name. A folder is searched together with its subfolder
            ``folder``, and then the zips in both.
        names: in order of preference.
        folder: name of the data set.
        remedy: for the error message: where to get the data and where to put them.

    Raises:
        NotFound: if there is no such file.
        BadData: if several zips hold such a file.
    """
    wanted = [name + ending for name in names for ending in ("", ".gz")]
    if path.is_file():
        found = _in_zip(path, wanted) if _is_zip(path) else [DataFile(path)]
    elif path.is_dir():
        places = [path, path / folder]
        found = [DataFile(place / name) for place in places for name in wanted if (place / name).is_file()]
        if not found:
            zips = [file for place in places for file in sorted(place.glob("*.zip"))]
            found = [inside for file in zips if _is_zip(file) for inside in _in_zip(file, wanted)[:1]]
            if len(found) > 1:
                raise BadData(
                    f"{wanted[0]} must be in one zip",
                    file=path,
                    value=[inside.path.name for inside in found],
                    remedy="set dataset.path in params.yaml to the right one",
                )
    else:
        _no_file(path, "the file or folder of the data")
    if not found:
        raise NotFound(f"no {' or '.join(wanted)} in {path}; {remedy}")
    return found[0]


def table_files(path: Path, endings: Sequence[str]) -> list[DataFile]:
    """The files of a table: a file, the only file in a zip, or all part files of a folder in the order of their names.

    Args:
        path: a file, a zip or a folder.
        endings: in a folder, only names with these endings count; names that start with "." or "_" do not.

    Raises:
        NotFound: if there is nothing at ``path``.
        BadData: if the folder holds no such file, if a zip does not hold exactly one file, or if ``path`` is a pipe or
            a device.
    """
    if path.is_file():
        return [_only_member(path)]
    if not path.is_dir():
        _no_file(path, "the table")
    parts = [
        file
        for file in sorted(path.iterdir())
        if file.suffix in endings and not file.name.startswith((".", "_")) and file.is_file()
    ]
    if not parts:
        raise BadData(
            f"holds no file whose name ends in {', '.join(endings)}",
            file=path,
            remedy="name the file or the folder of the table",
        )
    return [_only_member(part) for part in parts]


def _no_file(path: Path, wanted: str) -> NoReturn:
    """Raise the error for a path that is neither a file nor a folder."""
    if path.exists():
        raise BadData(
            "must be a file or a folder, not a pipe or a device",
            file=path,
            remedy=f"set dataset.path in params.yaml to {wanted}",
        )
    raise NotFound(f"there is no {path}; set dataset.path in params.yaml to {wanted}")


def _only_member(path: Path) -> DataFile:
    """The file, or the only file in it if it is a zip."""
    if not _is_zip(path):
        return DataFile(path)
    members = [name for name in _members(path) if not name.endswith("/")]
    if len(members) != 1:
        raise BadData("must hold exactly one file", file=path, value=members, remedy="unzip the right one")
    return DataFile(path, members[0])


def _is_zip(path: Path) -> bool:
    if zipfile.is_zipfile(path):
        return True
    if path.suffix == ".zip":
        raise BadData("is named .zip but is not a zip file", file=path, remedy=AGAIN)
    return False


def _members(path: Path) -> list[str]:
    """Names of the files in a zip, without the ones that macOS adds.

    Raises:
        BadData: if one is encrypted, or the list of them is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.filename.startswith("__MACOSX/")]
    except (ValueError, *DAMAGE) as error:  # ValueError: a name or an offset that cannot be
        raise BadData(f"cannot be read ({error})", file=path, remedy=AGAIN) from error
    for member in members:
        if member.flag_bits & ENCRYPTED:
            raise BadData(
                "must not be encrypted", file=f"{path}:{member.filename}", remedy="unzip it with its password first"
            )
    return [member.filename for member in members]


def _in_zip(path: Path, wanted: Sequence[str]) -> list[DataFile]:
    members = _members(path)
    return [DataFile(path, member) for name in wanted for member in members if member.rsplit("/", 1)[-1] == name]
