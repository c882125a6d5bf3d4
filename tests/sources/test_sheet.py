"""A sheet of a workbook is read like a text file: typed columns, and errors that name the row."""

import datetime

import pyarrow as pa
import pytest

from pipeline.sources.delimited import Column
from pipeline.sources.files import DataFile
from pipeline.sources.sheet import read_sheet
from pipeline.sources.source import BadData

openpyxl = pytest.importorskip("openpyxl")
COLUMNS = [Column("code", required=True), Column("number", pa.int64(), True), Column("price", pa.float64())]


def sheet(path, *rows):
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    book.create_sheet("another").append(["code"])
    book.save(path)
    return DataFile(path)


def test_values_have_the_types_of_their_columns(tmp_path):
    moment = datetime.datetime(2010, 12, 1, 8, 26)
    rows = [
        ["price", "other", " code ", "number"],
        [2.5, "x", 85123.0, 3],
        [None] * 4,
        [2, None, " 85123A ", 4.0],
        ["  ", None, moment, -1],
    ]
    found = read_sheet(sheet(tmp_path / "a.xlsx", *rows), COLUMNS)
    assert found.schema.types == [pa.string(), pa.int64(), pa.float64()]
    assert found.to_pydict() == {
        "code": ["85123", "85123A", "2010-12-01 08:26:00"],
        "number": [3, 4, -1],
        "price": [2.5, 2.0, None],
    }


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["code", "price"]], "line 1: no column 'number'; there are"),
        ([["code", "number", "price", "code"]], r"line 1: no two columns may have the same name, got \['code'\]"),
        ([], "line 1: no column 'code', 'number', 'price'"),
        ([["code", "number", "price"], ["a", 1, 1], [" ", 2, 1]], "line 3: column 'code' is missing; fill it in"),
        ([["code", "number", "price"], ["a", 1.5, 1]], "line 2: column 'number' must be a whole number, got '1.5'"),
        ([["code", "number", "price"], ["a", "1", 1]], "line 2: column 'number' must be a whole number, got '1'"),
        ([["code", "number", "price"], ["a", 1, "?"]], r"line 2: column 'price' must be a number, got '\?'; correct"),
    ],
)
def test_errors_name_the_row(tmp_path, rows, message):
    with pytest.raises(BadData, match=f"a.xlsx, {message}"):
        read_sheet(sheet(tmp_path / "a.xlsx", *rows), COLUMNS)


def test_a_file_that_is_no_workbook_is_told(tmp_path):
    (tmp_path / "a.xlsx").write_bytes(b"PK nothing")
    with pytest.raises(BadData, match=r"a.xlsx: is not a workbook .*; the file is damaged or incomplete"):
        read_sheet(DataFile(tmp_path / "a.xlsx"), COLUMNS)
