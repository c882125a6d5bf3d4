"""Files made to harm: archives that unpack to far more than they are or to somewhere else, and tables of odd bytes.

Each function writes over the file at a path, which has the columns of `tests.fuzz.base`.
"""

from __future__ import annotations

import gzip
import io
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

BIG = 10 << 20  # bytes
BOMB = 1 << 30  # bytes, unpacked; packed it has a thousandth


def _rewritten(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Change the text in a file, which may be gzipped or alone in a zip."""
    content = path.read_bytes()
    path.unlink()
    if content[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            (name,) = archive.namelist()
            text = archive.read(name)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, change(text))
    elif content[:2] == b"\x1f\x8b":
        path.write_bytes(gzip.compress(change(gzip.decompress(content)), 1))
    else:
        path.write_bytes(change(content))


def _bomb(unit: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        piece = unit * ((1 << 20) // len(unit))
        packed = path.read_bytes()[:2]
        path.unlink()
        if packed == b"PK":
            with (
                zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
                archive.open("t.csv", "w", force_zip64=True) as file,
            ):
                for _ in range(BOMB // len(piece)):
                    file.write(piece)
        else:
            with gzip.open(path, "wb", 1) as file:
                for _ in range(BOMB // len(piece)):
                    file.write(piece)

    return write


def _members(*names: str) -> Callable[[Path], None]:
    """Replaces a zip by one with the same content under each of these names."""

    def write(path: Path) -> None:
        with zipfile.ZipFile(path) as archive:
            text = archive.read(archive.namelist()[0])
        path.unlink()
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a name that is there twice
            for name in names:
                archive.writestr(name, text)

    return write


def _in_zip(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("inner.zip", content)


def _flagged(path: Path) -> None:
    """Marks the member of a zip as encrypted."""
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\x01\x02")
    content[6] |= 1
    content[at + 8] |= 1
    path.unlink()
    path.write_bytes(content)


def _claims(path: Path) -> None:
    """The zip says that its member unpacks to almost 4 GiB."""
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\x01\x02")
    content[at + 24 : at + 28] = content[22:26] = b"\xfe\xff\xff\xff"
    path.unlink()
    path.write_bytes(content)


def _part(name: str, unit: bytes, number: int) -> Callable[[Path], None]:
    """Replaces a part of a workbook by a unit again and again."""

    def write(path: Path) -> None:
        with zipfile.ZipFile(path) as archive:
            parts = {part: archive.read(part) for part in archive.namelist()}
        path.unlink()
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for part, content in parts.items():
                if part != name:
                    archive.writestr(part, content)
            with archive.open(name, "w", force_zip64=True) as file:
                for _ in range(number):
                    file.write(unit)

    return write


def _text(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: _rewritten(path, change)


def _cell(value: bytes) -> Callable[[Path], None]:
    """Puts a value into the second column of the second row."""

    def change(text: bytes) -> bytes:
        head, first, second, rest = text.split(b"\n", 3)
        cells = second.split(b",")
        return b"\n".join([head, first, b",".join([cells[0], value, *cells[2:]]), rest])

    return _text(change)


def _header(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return _text(lambda text: change(text.split(b"\n", 1)[0]) + b"\n" + text.split(b"\n", 1)[1])


def _many_columns(text: bytes) -> bytes:
    lines = text.split(b"\n")[:3]
    lines[0] += b"".join(b",x%d" % i for i in range(5_000))
    return b"\n".join(line + b",1" * 5_000 * (i > 0) for i, line in enumerate(lines) if line) + b"\n"


def _long_parquet(path: Path) -> None:
    table = pq.read_table(path, use_threads=False)
    user = pa.array(["x" * (BIG if row == 7 else 3) for row in range(len(table))])
    path.unlink()
    pq.write_table(table.set_column(table.schema.get_field_index("user"), "user", user), path)


def _nested_parquet(path: Path) -> None:
    table = pq.read_table(path, use_threads=False)
    user = pa.array([[{"a": row}] for row in range(len(table))])
    path.unlink()
    pq.write_table(table.set_column(table.schema.get_field_index("user"), "user", user), path)


def _coded_parquet(path: Path) -> None:
    """One long value that a row group stores once, for all its rows."""
    table = pq.read_table(path, use_threads=False)
    user = pa.DictionaryArray.from_arrays(pa.array([0] * len(table)), pa.array(["x" * BIG]))
    path.unlink()
    pq.write_table(table.set_column(table.schema.get_field_index("user"), "user", user), path)


TEXT: Mapping[str, Callable[[Path], None]] = {
    "nul bytes": _cell(b"a\0b"),
    "a script": _cell(b"<script>alert(1)</script>"),
    "a formula": _cell(b"\"=cmd|' /C calc'!A0\""),
    "a mark of direction": _cell("\u202eabc\u200f".encode()),
    "latin-1": _cell("Amélie".encode("latin-1")),
    "an open quote": _cell(b'"open'),
    "a quote within": _cell(b'a"b'),
    "a line end within": _cell(b'"a\nb"'),
    "a long value": _cell(b"x" * BIG),
    "a value of 900 kB": _cell(b"x" * 900_000),
    "a value of 900 kB in quotes": _cell(b'"' + b"x" * 900_000 + b'"'),
    "empty lines": _text(lambda text: text.replace(b"\n", b"\n\n")),
    "line ends of Windows": _text(lambda text: text.replace(b"\n", b"\r\n")),
    "line ends of old Macs": _text(lambda text: text.replace(b"\n", b"\r")),
    "utf-16": _text(lambda text: text.decode().encode("utf-16")),
    "a byte order mark": _text(lambda text: b"\xef\xbb\xbf" + text),
    "only a header": _text(lambda text: text.split(b"\n", 1)[0] + b"\n"),
    "a header of spaces": _header(lambda head: b" ".join([b"", *head.split(b",")]).replace(b" ", b" , ")),
    "a column twice": _header(lambda head: head.replace(b"user", b"item")),
    "many columns": _text(_many_columns),
    "ten million line ends": _text(lambda text: text + b"\n" * BIG),
    "ten million commas": _text(lambda text: text + b"," * BIG),
    "ten million quotes": _text(lambda text: text + b'"' * BIG),
    "bad lines at the end": _text(lambda text: text * 100 + b"1,2\n"),
}
ZIP: Mapping[str, Callable[[Path], None]] = {
    "a bomb of one line": _bomb(b"\0"),
    "a bomb of line ends": _bomb(b"\n"),
    "a bomb of commas": _bomb(b",,,,\n"),
    "a name above": _members("../../../fuzz-was-here.csv"),
    "a name from the root": _members("/tmp/fuzz-was-here.csv"),
    "two members": _members("a.csv", "b.csv"),
    "a member twice": _members("a.csv", "a.csv"),
    "no member": _members(),
    "names of a thousand folders": _members("a/" * 5_000 + "t.csv"),
    "a zip in a zip": _in_zip,
    "an encrypted member": _flagged,
    "a size of 4 GiB": _claims,
}
GZIP: Mapping[str, Callable[[Path], None]] = {
    name: ZIP[name] for name in ("a bomb of one line", "a bomb of line ends", "a bomb of commas")
}
ENTITIES = b"".join(b'<!ENTITY a%d "%s">' % (n, b"&a%d;" % (n - 1) * 10) for n in range(1, 12))
LAUGHS = b'<!DOCTYPE x [<!ENTITY a0 "haha">' + ENTITIES + b"]><worksheet>&a11;</worksheet>"
OUTSIDE = b'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><worksheet>&a;</worksheet>'
SHEET, STRINGS = "xl/worksheets/sheet1.xml", "xl/sharedStrings.xml"
WORKBOOK: Mapping[str, Callable[[Path], None]] = {
    "a bomb of rows": _part(SHEET, b"<row><c><v>1</v></c></row>" * 40_000, BOMB >> 20),
    "a bomb of texts": _part(STRINGS, b"<si><t>x</t></si>" * 60_000, BOMB >> 20),
    "entities of entities": _part(SHEET, LAUGHS, 1),
    "an entity outside": _part(SHEET, OUTSIDE, 1),
    "no sheet": _part(SHEET, b"", 1),
    "a text that is not there": _part(STRINGS, b"<sst></sst>", 1),
}
PARQUET: Mapping[str, Callable[[Path], None]] = {
    "a long value": _long_parquet,
    "nested values": _nested_parquet,
    "a long value for all rows": _coded_parquet,
}
