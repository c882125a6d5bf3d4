"""Online Retail (UCI 352): the invoices of a British shop from December 2010 to December 2011, 541,909 rows.

D. Chen, S. L. Sain, K. Guo 2012, Data mining for the online retail industry, J. Database Marketing 19(3).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.sources.delimited import Column, Delimited
from pipeline.sources.files import DataFile, find
from pipeline.sources.sheet import read_sheet
from pipeline.sources.source import BAG, CATEGORICAL, ITEM, USER, BadData, Interacting, Source

NAMES = ["online-retail.csv", "Online Retail.csv", "Online Retail.xlsx"]
WHERE = (
    "get online+retail.zip of https://archive.ics.uci.edu/dataset/352 and set dataset.path in params.yaml to it, or to "
    "the folder with its Online Retail.xlsx; a copy as CSV must be UTF-8, with dates like 2010-12-01 08:26:00"
)
CARRIAGE = "C2"  # no product, though its code has a digit
COLUMNS = [
    Column("InvoiceNo", required=True),
    Column("StockCode", required=True),
    Column("Description"),
    Column("Quantity", pa.int64(), required=True),
    Column("InvoiceDate", required=True),
    Column("UnitPrice", pa.float64(), required=True),
    Column("CustomerID"),
    Column("Country"),
]
MOMENT = r"^\d{4}-\d{2}-\d{2} \d{2}:\d{2}(:\d{2})?$"
PURCHASE, RETURN = "purchase", "return"
GROUP_LENGTH = 3  # characters of a stock code that stand for its group: similar products have codes that begin alike
PRICE_STEPS = 2  # buckets of the price between a price and its double
HISTORY, MOST_TOKENS = 20, 12
ROLES = {"customer": USER, "country": USER, "item": ITEM, "title": ITEM, "group": ITEM, "price": ITEM}


def read(path: Path) -> Source:
    """Purchases and returns of customers: a row of an invoice is an event, and an invoice is a basket.

    Fields of a customer are its number and the country; those of an item are the stock code in upper case, ``title``
    (the words of the description, of letters and digits, in lower case), ``group`` (the first three characters of the
    stock code) and ``price`` (floor(2 log2 of the price in pence), so that a bucket is a factor of 1.4 wide). Every row
    has the title and the price of its own time, so none tells of the future. The time is in minutes. Notes count the
    rows that are left out, in this order: without a customer, of something that is no product (its code has no digit,
    e.g. POST or BANK CHARGES, or is C2, the carriage), repeated exactly, of quantity 0, of a price that is not above 0.

    Args:
        path: the publisher's workbook; or a CSV file, plain or as .gz; or a zip or a folder with one of them.

    Raises:
        NotFound: if the file is not there.
        BadData: if it is not as described.
        ValueError: if it is a workbook and openpyxl is not installed.
    """
    # A workbook is itself a zip, in which `find` would look for the file.
    file = DataFile(path) if path.is_file() and path.suffix == ".xlsx" else find(path, NAMES, "online-retail", WHERE)
    notes: list[str] = []

    def batches() -> Iterator[pa.RecordBatch]:
        yield from _events(file, _usable(_rows(file), notes)).to_batches()

    return Source(
        {name: BAG if name == "title" else CATEGORICAL for name in ROLES},
        batches(),
        str(file),
        {"min_count": 1, "max_bag": MOST_TOKENS, "history": HISTORY},
        facts={"time_unit": "min"},
        notes=notes,
        interactions=Interacting(ROLES, "customer", "item", targets=(PURCHASE,)),
    )


def _rows(file: DataFile) -> pa.Table:
    if (file.member or file.path.name).endswith(".xlsx"):
        return read_sheet(file, COLUMNS)
    return pa.Table.from_batches(Delimited(file, None, quoted=True, strip=True).read(COLUMNS))


def _usable(rows: pa.Table, notes: list[str]) -> pa.Table:
    """The rows that are events of customers and products; adds to the notes how many are left out, and why."""

    def keep(kept: pa.ChunkedArray, what: str) -> None:
        nonlocal rows
        before, rows = len(rows), rows.filter(kept)
        notes.append(f"{before - len(rows):,} rows {what} are left out")

    customer = pc.fill_null(pc.not_equal(rows["CustomerID"], ""), False)
    cancelled = pc.sum(pc.and_(pc.starts_with(rows["InvoiceNo"], "C"), pc.invert(customer))).as_py() or 0
    keep(customer, f"without a customer, {cancelled:,} of them cancellations,")
    is_product = pc.match_substring_regex(rows["StockCode"], r"\d")
    is_product = pc.and_(is_product, pc.not_equal(pc.utf8_upper(rows["StockCode"]), CARRIAGE))
    keep(is_product, f"that are no products (stock codes without a digit, and {CARRIAGE})")
    keep(_first_of_each(rows), "that repeat another row exactly")
    keep(pc.not_equal(rows["Quantity"], 0), "of quantity 0")
    keep(pc.greater(rows["UnitPrice"], 0), "without a price above 0")
    return rows


def _first_of_each(rows: pa.Table) -> pa.Array:
    """Whether each row is the first of those that equal it."""
    names = rows.column_names
    numbered = rows.append_column("row", pa.array(np.arange(len(rows))))
    first = np.zeros(len(rows), bool)
    first[numbered.group_by(names).aggregate([("row", "min")])["row_min"].to_numpy()] = True
    return pa.array(first)


def _events(file: DataFile, rows: pa.Table) -> pa.Table:
    """The columns of `Source`, from rows of the publisher's columns."""
    item = pc.utf8_upper(rows["StockCode"])
    words = pc.utf8_lower(pc.fill_null(rows["Description"], ""))
    words = pc.utf8_trim_whitespace(pc.replace_substring_regex(words, r"[^\p{L}\p{Nd}]+", " "))
    tokens = pa.array([text.split() for text in words.to_pylist()], pa.list_(pa.string()))
    pence = 100 * rows["UnitPrice"].to_numpy()
    return pa.table(
        {
            "customer": pc.replace_substring_regex(rows["CustomerID"], r"\.0+$", ""),
            "country": rows["Country"],
            "item": item,
            "title": tokens,
            "group": pc.utf8_slice_codeunits(item, 0, GROUP_LENGTH),
            "price": pa.array(np.floor(PRICE_STEPS * np.log2(pence)).astype(np.int64)),
            "event": pc.if_else(pc.greater(rows["Quantity"], 0), PURCHASE, RETURN),
            "basket": rows["InvoiceNo"],
            "time": _minutes(file, rows["InvoiceDate"]),
        }
    )


def _minutes(file: DataFile, moments: pa.ChunkedArray) -> pa.ChunkedArray:
    """Minutes since 1970, from texts like 2010-12-01 08:26:00."""
    wrong = moments.filter(pc.invert(pc.match_substring_regex(moments, MOMENT)))
    if len(wrong):
        value = wrong[0].as_py()
        raise BadData("column 'InvoiceDate' must be like 2010-12-01 08:26:00", file=file, value=value, remedy=WHERE)
    try:
        seconds = pc.cast(pc.cast(moments, pa.timestamp("s")), pa.int64())
    except pa.ArrowInvalid as error:  # e.g. month 13
        raise BadData(f"column 'InvoiceDate': {error}", file=file, remedy="correct it") from error
    return pc.divide(seconds, 60)
