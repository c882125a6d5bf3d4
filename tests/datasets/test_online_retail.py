"""The invoices of a shop as purchases and returns of customers."""

import csv
import datetime
import gzip
import sys
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pipeline.datasets import online_retail
from pipeline.sources.raw import write_raw
from pipeline.sources.source import BadData, NotFound

REAL = Path(__file__).parents[2] / "../shared/data"
HEADER = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country"
GOOD = '536365,85123a,"HEART, T-LIGHT  Holder",6,2010-12-01 08:26:59,2.55,17850.0,United Kingdom'


def put(folder, *lines):
    (folder / "online-retail.csv").write_text("\n".join([HEADER, *lines]) + "\n")
    return folder


def table(path):
    return pa.Table.from_batches(online_retail.read(path).batches).to_pylist()


def test_a_purchase_and_its_return_by_hand(tmp_path):
    back = "C536390,85123A,,-2,1970-01-01 01:01:00,1.00,17850,France"
    bought, returned = table(put(tmp_path, GOOD, back))
    assert bought == {
        "customer": "17850",
        "country": "United Kingdom",
        "item": "85123A",
        "title": ["heart", "t", "light", "holder"],
        "group": "851",
        "price": 15,  # 2 log2(255) = 15.99
        "event": "purchase",
        "basket": "536365",
        "time": 14944 * 1440 + 8 * 60 + 26,  # 14,944 days after 1970-01-01
    }
    assert returned["customer"] == "17850" and returned["item"] == "85123A" and returned["title"] == []
    assert returned["event"] == "return" and returned["basket"] == "C536390"
    assert returned["time"] == 61 and returned["price"] == 13  # 2 log2(100) = 13.29


def test_every_row_that_is_left_out_is_counted_once(tmp_path):
    kept = [GOOD, GOOD.replace(",6,", ",7,")]
    left_out = [
        "1,85123A,X,6,2010-12-01 08:26:00,2.55,,France",
        "C2,POST,X,-6,2010-12-01 08:26:00,2.55,,France",
        "3,BANK CHARGES,X,6,2010-12-01 08:26:00,0,5,France",
        "3,M,X,6,2010-12-01 08:26:00,1,5,France",
        "3,c2,CARRIAGE,1,2010-12-01 08:26:00,50,5,France",
        GOOD,
        "4,22423,X,0,2010-12-01 08:26:00,1,5,France",
        "5,22423,X,1,2010-12-01 08:26:00,0,5,France",
    ]
    record = write_raw(online_retail.read(put(tmp_path, *kept, *left_out)), tmp_path / "table.parquet")
    assert record["rows"] == len(kept)
    assert record["notes"] == [
        "2 rows without a customer, 1 of them cancellations, are left out",
        "3 rows that are no products (stock codes without a digit, and C2) are left out",
        "1 rows that repeat another row exactly are left out",
        "1 rows of quantity 0 are left out",
        "1 rows without a price above 0 are left out",
    ]
    assert record["interactions"]["targets"] == ["purchase"] and record["facts"] == {"time_unit": "min"}
    assert record["label"] is None and record["time"] and record["interactions"]["basket"]


def test_the_file_may_be_gzipped(tmp_path):
    expected = table(put(tmp_path, GOOD))
    packed = tmp_path / "online-retail"
    packed.mkdir()
    (packed / "online-retail.csv.gz").write_bytes(gzip.compress((tmp_path / "online-retail.csv").read_bytes()))
    assert table(packed) == expected == table(packed / "online-retail.csv.gz")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            GOOD.replace("2010-12-01 08:26:59", "12/1/2010 8:26"),
            "must be like 2010-12-01 08:26:00, got '12/1/2010 8:26'",
        ),
        (GOOD.replace("2010-12-01", "2010-13-01"), "column 'InvoiceDate': .*2010-13-01"),
        (GOOD.replace(",6,", ",six,"), "line 3: column 'Quantity' must be a whole number, got 'six'"),
        (GOOD.replace("2.55", ""), "line 3: column 'UnitPrice'"),
        (GOOD + ",more", "line 3: must have 8 values, has 9"),
    ],
)
def test_a_wrong_value_is_named(tmp_path, line, message):
    with pytest.raises(BadData, match=message):
        table(put(tmp_path, GOOD, line))


def workbook(path, *rows):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in (HEADER.split(","), *rows):
        book.active.append(row)
    book.save(path)
    return path


def test_the_publishers_workbook_reads_like_the_csv(tmp_path):
    title, moment = "HEART, T-LIGHT  Holder", datetime.datetime(2010, 12, 1, 8, 26, 59)
    bought = [536365, "85123a", title, 6, moment, 2.55, 17850, "United Kingdom"]
    returned = ["C536390", 22423, None, -2, moment, 1, 17850, "United Kingdom"]
    expected = table(put(tmp_path, GOOD, "C536390,22423,,-2,2010-12-01 08:26:59,1,17850,United Kingdom"))
    folder = tmp_path / "online-retail"
    folder.mkdir()
    path = workbook(folder / "Online Retail.xlsx", bought, returned, [None] * 8)
    with zipfile.ZipFile(tmp_path / "online+retail.zip", "w") as archive:
        archive.write(path, path.name)
    path.with_name("other.xlsx").write_bytes(path.read_bytes())
    for place in (path, folder, tmp_path / "online+retail.zip", folder / "other.xlsx"):
        assert table(place) == expected
    left_out = [None, "POST", *bought[2:]]
    with pytest.raises(BadData, match=r"other.xlsx, line 3: column 'InvoiceNo' is missing; fill it in"):
        table(workbook(folder / "other.xlsx", bought, left_out))


def test_without_openpyxl_a_workbook_is_refused_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    (tmp_path / "Online Retail.xlsx").write_bytes(b"")
    with pytest.raises(ValueError, match=r"needs the package openpyxl; install it, .* or save the sheet as CSV"):
        table(tmp_path)


def test_the_error_for_a_missing_file_says_where_to_get_it(tmp_path):
    with pytest.raises(NotFound, match=r"no online-retail.csv or .* in .*; get online\+retail.zip of https"):
        online_retail.read(tmp_path)


@pytest.mark.skipif(not (REAL / "online-retail").exists(), reason="the data are not here")
def test_the_rows_are_those_that_a_plain_reading_leaves(tmp_path):
    with gzip.open(REAL / "online-retail/online-retail.csv.gz", "rt", encoding="utf-8", newline="") as file:
        raw = list(csv.DictReader(file))
    sold = [row for row in raw if row["CustomerID"] and int(row["Quantity"]) > 0]
    counts = [len({row[name] for row in sold}) for name in ("CustomerID", "StockCode", "InvoiceNo")]
    assert (len(sold), *counts) == (397_924, 4_339, 3_665, 18_536)  # as published
    codes = {row["StockCode"] for row in raw if any(map(str.isdigit, row["StockCode"]))} - {"C2"}
    products = [tuple(row.values()) for row in raw if row["CustomerID"] and row["StockCode"] in codes]
    expected = [row for row in dict.fromkeys(products) if int(row[3]) and float(row[5]) > 0]
    found = pa.Table.from_batches(online_retail.read(REAL / "online-retail").batches)
    assert found["basket"].to_pylist() == [row[0] for row in expected]
    assert found["item"].to_pylist() == [row[1].upper() for row in expected]
    assert pc.sum(pc.equal(found["event"], "return")).as_py() == sum(int(row[3]) < 0 for row in expected)
