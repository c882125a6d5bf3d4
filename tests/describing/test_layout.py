"""How text files are laid out."""

from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.describing.excerpt import Excerpt
from pipeline.describing.layout import encoding_of, has_header, layout_of, missing_texts
from pipeline.sources.source import BadData

TEXT = "user,price,click\nanna,1.5,0\nbert,2.5,1\n"


def excerpt(text: str, encoding: str = "utf-8") -> Excerpt:
    return Excerpt(Path("log.csv"), None, text.encode(encoding))


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
def test_the_delimiter_is_the_one_that_divides_all_lines_alike(delimiter: str) -> None:
    text = TEXT.replace(",", delimiter).replace("anna", '"an,na; |x"')
    layout = layout_of(excerpt(text))
    assert (layout.delimiter, layout.names, layout.encoding) == (delimiter, None, "utf-8")


def test_decimal_commas_are_no_delimiters() -> None:
    assert layout_of(excerpt("a;b;c\n" + "1,5;2,5;3,5\n" * 20)).delimiter == ";"


def test_line_ends_of_windows_and_a_mark_of_the_byte_order_change_nothing() -> None:
    assert layout_of(excerpt("\ufeff" + TEXT.replace("\n", "\r\n"))) == layout_of(excerpt(TEXT))
    assert layout_of(excerpt("\ufeff1,2\n3,4\n")).names == ("column_1", "column_2")


@pytest.mark.parametrize(
    ("text", "encoding", "found"),
    [("Käse", "utf-8", "utf-8"), ("5 €", "cp1252", "cp1252"), ("K\x81se", "latin-1", "latin-1")],
)
def test_the_encoding_is_utf_8_where_it_can_be(text: str, encoding: str, found: str) -> None:
    assert encoding_of(excerpt(text, encoding)) == found


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a b\n1 2\n", "separated by spaces"),
        ("a::b\n1::2\n", "separated by '::'"),
        ("click\n1\n0\n", "single column"),
        ("a\0b,c\n1,2\n", "not plain text"),
    ],
)
def test_what_is_not_read_is_refused_by_its_name(text: str, problem: str) -> None:
    with pytest.raises(BadData, match=f"log.csv.*{problem}"):
        layout_of(excerpt(text))
    with pytest.raises(BadData, match=r"UTF-16.*save it as CSV in UTF-8"):
        layout_of(excerpt(TEXT, "utf-16"))


@pytest.mark.parametrize(
    ("rows", "header"),
    [
        ([["user", "price"], ["anna", "1"], ["bert", "2"]], True),
        ([["anna", "1"], ["bert", "2"], ["carl", "3"]], False),
        ([["user", "city"], ["anna", "Rome"], ["bert", "Oslo"]], True),
        ([["anna", "Rome"], ["bert", "Oslo"], ["carl", "Rome"]], False),
        ([["user", "day"], ["anna", "2020-01-01"]], True),
        ([["0", "1"], ["anna", "Rome"]], True),
        ([["", "price"], ["0", "2"], ["1", "3"]], True),
        ([["user", "city"]], True),
    ],
)
def test_a_header_is_a_line_of_names(rows: list[list[str]], header: bool) -> None:
    assert has_header(rows) == header


def test_texts_for_missing_values_are_those_that_cannot_be_values() -> None:
    numbers = pa.chunked_array([["1", "NA", "2.5", "-", None]])
    countries = pa.chunked_array([["NA", "DE", "None", "?"]])
    assert missing_texts([numbers, countries]) == ["-", "?", "NA"]
    assert missing_texts([countries]) == ["?"]
    assert missing_texts([pa.chunked_array([["x", "-", "1"]])]) == []
    assert missing_texts([pa.chunked_array([["2020-01-01", "\\N", "None"]])]) == ["None", "\\N"]
