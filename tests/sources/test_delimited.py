"""Text with columns: ordinary variants read alike, and what is wrong is told with its line and the remedy."""

import gzip
import zipfile

import pyarrow as pa
import pytest

from pipeline.sources import delimited
from pipeline.sources.delimited import Column, Delimited, binary_label, extends_ascii
from pipeline.sources.files import DataFile, find
from pipeline.sources.source import BadData

LABEL = binary_label("label", "use another")
COLUMNS = [LABEL, Column("price", pa.float64()), Column("count", pa.int64()), Column("word")]
GOOD = b"label,price,count,word\n0,1.5,3,x\n1,,4,\n"


def read(path, text, columns=COLUMNS, **settings):
    path.write_bytes(text)
    table = Delimited(DataFile(path), None, quoted=True, strip=True, **settings)
    return pa.Table.from_batches(table.read(columns)).to_pydict()


EXPECTED = {"label": [0, 1], "price": [1.5, None], "count": [3, 4], "word": ["x", None]}


def test_ordinary_variants_of_a_file_read_alike(tmp_path):
    for variant, text in {
        "plain": GOOD,
        "BOM": b"\xef\xbb\xbf" + GOOD,
        "CRLF": GOOD.replace(b"\n", b"\r\n"),
        "no last line end": GOOD[:-1],
        "blank lines": GOOD.replace(b"\n", b"\n\n"),
        "spaces": GOOD.replace(b",", b", "),
        "quotes": GOOD.replace(b"x", b'"x"'),
    }.items():
        assert read(tmp_path / "a.csv", text) == EXPECTED, variant


def test_latin_1_is_read_if_the_encoding_says_so(tmp_path):
    text = "label,price,count,word\n0,1,2,Amélie\n".encode("latin-1")
    assert read(tmp_path / "a.csv", text, encoding="latin-1")["word"] == ["Amélie"]


HEAD = b"label,price,count,word\n"
GOOD_LINE = b"0,1.5,3,x\n"


def test_errors_in_text_name_the_file_the_line_the_value_and_the_remedy(tmp_path):
    number = [binary_label("label"), Column("price", pa.float64(), required=True)]
    for line, message, *columns in (
        (b"2,1,1,x", r"line 3: column 'label' must be 0 or 1, got '2'; use another"),
        (b"yes,1,1,x", r"line 3: column 'label' must be 0 or 1, got 'yes'; use another"),
        (b",1,1,x", r"line 3: column 'label' is missing, got ''; fill it in or remove the line"),
        (b"1,cheap,1,x", r"line 3: column 'price' must be a number, got 'cheap'; correct it, or list it in the option"),
        (b"1,1_000,1,x", r"line 3: column 'price' must be a number, got '1_000'"),
        (b"\n\r\n1,cheap,1,x", r"line 5: column 'price' must be a number, got 'cheap'"),
        (b"1,inf,1,x", r"line 3: column 'price' must be finite, got 'inf'"),
        (b"1,1,1.5,x", r"line 3: column 'count' must be a whole number, got '1.5'"),
        (b"1,1,+5,x", r"line 3: column 'count' must be a whole number, got '\+5'"),
        (b"1,1," + b"9" * 21 + b",x", r"line 3: column 'count' must fit int64, got '9999"),
        (b"1,1,1", r"line 3: must have 4 values, has 3, got '1,1,1'; correct or remove the line"),
        (b"1,1,1,x,y", r"line 3: must have 4 values, has 5"),
        (b"1,1,1,\xff", r"line 3: is not utf-8, got b'1,1,1,\\xff'; give the right encoding"),
        (b'1,1,1,"x\n0,1,1,y', r'line 3: malformed quotes .*got \'1,1,1,"x\'; close every quote'),
        (b'1,1,1,"x\n0,1,1,"y', r"line 3: malformed quotes"),
        (
            b"1,nan,1,x",
            r"line 3: column 'price' must be a number, got 'nan'; correct the value or remove the line",
            number,
        ),
        (b"1,,1,x", r"line 3: column 'price' is missing, got ''; fill it in", number),
        (b"1,-inf,1,x", r"line 3: column 'price' must be finite, got '-inf'", number),
        (b"1,cheap,1,x", r"line 3: column 'price' must be a number, got 'cheap'; correct the value or remove", number),
    ):
        with pytest.raises(BadData, match=f"a.csv, {message}"):
            read(tmp_path / "a.csv", HEAD + GOOD_LINE + line + b"\n", *columns)


def test_errors_in_the_header_name_the_columns(tmp_path):
    for text, message in (
        (b"label,price,price,word\n" + GOOD_LINE, r", line 1: no two columns may have the same name, got \['price'\]"),
        (b"label,price,count\n0,1,2\n", r", line 1: no column 'word'; there are \['label', 'price', 'count'\]"),
        (b"", r": is empty; the file is incomplete"),
    ):
        with pytest.raises(BadData, match=f"a.csv{message}"):
            read(tmp_path / "a.csv", text)


def test_a_stray_quote_in_a_column_that_is_not_read_swallows_no_row(tmp_path):
    text = b'label,title\n0,"a\n1,"b\n0,c\n'
    with pytest.raises(BadData, match=r"line 2: malformed quotes"):
        read(tmp_path / "a.csv", text, columns=[LABEL])


def test_the_line_is_right_far_into_the_file_and_past_blank_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(delimited, "BLOCK_BYTES", 1000)
    text = HEAD + GOOD_LINE * 700 + b"\n\n" + GOOD_LINE * 300 + b"0,bad,3,x\n" + GOOD_LINE * 500
    with pytest.raises(BadData, match=r"line 1004: column 'price' must be a number, got 'bad'"):
        read(tmp_path / "a.csv", text)


def test_only_encodings_that_extend_ascii_can_be_used():
    assert all(map(extends_ascii, ("utf-8", "latin-1", "cp1252")))
    assert not any(map(extends_ascii, ("nope", "utf-16")))


def test_the_error_for_a_truncated_gzip_names_the_line_where_it_ends(tmp_path):
    text = HEAD + b"".join(b"0,1,%d,word%d\n" % (i, i * i) for i in range(5_000))
    with pytest.raises(BadData, match=r"a.csv.gz, line \d+: cannot be read .*download or copy it again"):
        read(tmp_path / "a.csv.gz", gzip.compress(text)[:-1000])


def test_the_error_for_a_damaged_zip_names_it(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(BadData, match=r"a.zip: is named .zip but is not a zip file"):
        find(tmp_path / "a.zip", ["train.txt"], "criteo", "get it")
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("a.csv", HEAD + GOOD_LINE * 1000)
    damaged = bytearray((tmp_path / "b.zip").read_bytes())
    damaged[5000] ^= 1
    (tmp_path / "b.zip").write_bytes(damaged)
    table = Delimited(DataFile(tmp_path / "b.zip", "a.csv"), None)
    with pytest.raises(BadData, match=r"b.zip:a.csv, line \d+: cannot be read \(Bad CRC-32"):
        list(table.read(COLUMNS))


def test_long_values_are_read_and_too_long_ones_are_told(tmp_path):
    long = b"x" * 300_000
    assert read(tmp_path / "a.csv", HEAD + b"0,1.5,3," + long + b"\n")["word"] == [long.decode()]
    with pytest.raises(BadData, match="line 2: column 'price' must be a number, got 'cheap'"):
        read(tmp_path / "a.csv", HEAD + b"0,cheap,3," + long + b"\n")
    with pytest.raises(BadData, match=r"line 3: must be at most 1,048,576 bytes long, got b'0,1.5,3,xxx"):
        read(tmp_path / "a.csv", HEAD + GOOD_LINE + b"0,1.5,3," + long * 8 + b"\n")


def test_a_wrong_delimiter_is_told_for_a_file_without_a_header(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"0;1;2;x\n")
    table = Delimited(DataFile(tmp_path / "a.csv"), ["label", "price", "count", "word"])
    with pytest.raises(
        BadData, match=r"line 1: must have 4 values, has 1, .*separated by ';': set the option 'delimiter'"
    ):
        list(table.read(COLUMNS))


def test_a_column_that_a_quoted_header_lacks_is_named_and_so_is_its_delimiter(tmp_path):
    with pytest.raises(BadData, match=r"line 1: no column 'count', 'word'; there are \['label', 'price'\]"):
        read(tmp_path / "a.csv", b'"label","price"\n1,2\n')
    with pytest.raises(BadData, match="the values are separated by ';': set the option 'delimiter'"):
        read(tmp_path / "a.csv", b'"label";"price";"count";"word"\n1;2;3;x\n')
    with pytest.raises(BadData, match=r"line 2: malformed quotes .*; close every quote on its line"):
        read(tmp_path / "a.csv", b'label,price,count,word\n5,1,2,"x "y" z|w"\n')


def test_a_header_in_another_encoding_is_named(tmp_path):
    for header in ("label,Preis,count,Stück", "label,price,count,word"):
        with pytest.raises(BadData, match=r"a.csv, line 1: is not utf-8, got .*; give the right encoding"):
            read(tmp_path / "a.csv", f"{header}\n1,2,3,x\n".encode("utf-16" if "word" in header else "latin-1"))
