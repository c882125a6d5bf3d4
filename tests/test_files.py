import gzip
import zipfile

import pyarrow as pa
import pytest

from pipeline.sources import delimited as files
from pipeline.sources.delimited import ZERO_OR_ONE, Column, Delimited
from pipeline.sources.files import DataFile, find
from pipeline.sources.source import BadData, NotFound

LABEL = Column("label", pa.uint8(), True, ZERO_OR_ONE, ("must be 0 or 1", "use another"))
COLUMNS = [LABEL, Column("price", pa.float64()), Column("count", pa.int64()), Column("word")]
GOOD = b"label,price,count,word\n0,1.5,3,x\n1,,4,\n"


def read(path, text, columns=COLUMNS, **settings):
    path.write_bytes(text)
    table = Delimited(DataFile(path), None, quoted=True, strip=True, **settings)
    return pa.Table.from_batches(table.read(columns)).to_pydict()


EXPECTED = {"label": [0, 1], "price": [1.5, None], "count": [3, 4], "word": ["x", None]}


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        b"\xef\xbb\xbf" + GOOD,
        GOOD.replace(b"\n", b"\r\n"),
        GOOD[:-1],
        GOOD.replace(b"\n", b"\n\n"),
        GOOD.replace(b",", b", "),
        GOOD.replace(b"x", b'"x"'),
    ],
    ids=["plain", "BOM", "CRLF", "no last line end", "blank lines", "spaces", "quotes"],
)
def test_ordinary_variants_read_alike(tmp_path, text):
    assert read(tmp_path / "a.csv", text) == EXPECTED


def test_latin_1_is_read_when_told(tmp_path):
    text = "label,price,count,word\n0,1,2,Amélie\n".encode("latin-1")
    assert read(tmp_path / "a.csv", text, encoding="latin-1")["word"] == ["Amélie"]


HEAD = b"label,price,count,word\n"
GOOD_LINE = b"0,1.5,3,x\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + GOOD_LINE + b"2,1,1,x\n", r"line 3: column 'label' must be 0 or 1, found '2'; use another"),
        (HEAD + GOOD_LINE + b"yes,1,1,x\n", r"line 3: column 'label' must be 0 or 1, found 'yes'; use another"),
        (HEAD + GOOD_LINE + b",1,1,x\n", r"line 3: column 'label' is missing, found ''; fill it in or remove"),
        (HEAD + GOOD_LINE + b"1,cheap,1,x\n", r"line 3: column 'price' must be a number, found 'cheap'; correct it"),
        (HEAD + GOOD_LINE + b"\n\r\n1,cheap,1,x\n", r"line 5: column 'price' must be a number, found 'cheap'"),
        (HEAD + GOOD_LINE + b"1,inf,1,x\n", r"line 3: column 'price' must be finite, found 'inf'"),
        (HEAD + GOOD_LINE + b"1,1,1.5,x\n", r"line 3: column 'count' must be a whole number, found '1.5'"),
        (HEAD + GOOD_LINE + b"1,1,9" + b"9" * 20 + b",x\n", r"line 3: column 'count' does not fit int64, found '9999"),
        (HEAD + GOOD_LINE + b"1,1,1\n", r"line 3: 3 values where 4 are expected, found '1,1,1'; correct or remove"),
        (HEAD + GOOD_LINE + b"1,1,1,x,y\n", r"line 3: 5 values where 4 are expected"),
        (HEAD + GOOD_LINE + b"1,1,1,\xff\n", r"line 3: is not utf-8, found b'1,1,1,\\xff'; give the right encoding"),
        (
            HEAD + GOOD_LINE + b'1,1,1,"x\n0,1,1,y\n',
            r'line 3: malformed quotes .*found \'1,1,1,"x\'; close every quote',
        ),
        (HEAD + GOOD_LINE + b'1,1,1,"x\n0,1,1,"y\n', r"line 3: malformed quotes"),
        (b"label,price,price,word\n" + GOOD_LINE, r"line 1: columns occur twice, found \['price'\]"),
        (b"label,price,count\n0,1,2\n", r"line 1: no column 'word'; there are \['label', 'price', 'count'\]"),
        (b"", r"a.csv: is empty; the file is incomplete"),
    ],
)
def test_bad_text_is_told_by_file_line_value_and_remedy(tmp_path, text, message):
    with pytest.raises(BadData, match=message) as caught:
        read(tmp_path / "a.csv", text)
    assert "a.csv" in str(caught.value)


def test_a_stray_quote_in_a_column_that_is_not_read_swallows_no_row(tmp_path):
    text = b'label,title\n0,"a\n1,"b\n0,c\n'
    with pytest.raises(BadData, match="line 2: malformed quotes"):
        read(tmp_path / "a.csv", text, columns=[LABEL])


def test_the_line_is_right_far_into_the_file_and_past_blank_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "BLOCK_BYTES", 1000)
    text = HEAD + GOOD_LINE * 700 + b"\n\n" + GOOD_LINE * 300 + b"0,bad,3,x\n" + GOOD_LINE * 500
    with pytest.raises(BadData, match=r"line 1004: column 'price' must be a number, found 'bad'"):
        read(tmp_path / "a.csv", text)


@pytest.mark.parametrize("name", ["nope", "utf-16"])
def test_an_encoding_that_cannot_be_used_is_refused(tmp_path, name):
    with pytest.raises(BadData, match=f"cannot be read in this encoding, found '{name}'; give one that Python knows"):
        read(tmp_path / "a.csv", GOOD, encoding=name)


def test_a_truncated_gzip_is_told_with_the_line_it_ends_at(tmp_path):
    text = HEAD + b"".join(b"0,1,%d,word%d\n" % (i, i * i) for i in range(50_000))
    with pytest.raises(BadData, match=r"a.csv.gz, line \d+: cannot be read on .*download or copy it again"):
        read(tmp_path / "a.csv.gz", gzip.compress(text)[:-1000])


def test_a_damaged_zip_is_told(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(BadData, match=r"a.zip: is no zip file, whatever its name says"):
        find(tmp_path / "a.zip", ["train.txt"], "criteo", "get it")
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("a.csv", HEAD + GOOD_LINE * 1000)
    damaged = bytearray((tmp_path / "b.zip").read_bytes())
    damaged[5000] ^= 1
    (tmp_path / "b.zip").write_bytes(damaged)
    table = Delimited(DataFile(tmp_path / "b.zip", "a.csv"), None)
    with pytest.raises(BadData, match=r"b.zip:a.csv, line \d+: cannot be read on \(Bad CRC-32"):
        list(table.read(COLUMNS))


def forms(folder, name, text):
    """Every way to keep a file, as {path to give: name of the form}."""
    made = {}
    for form in ("plain", "gz", "zip", "gz in zip"):
        place = folder / form.replace(" ", "-")
        place.mkdir()
        data = gzip.compress(text) if "gz" in form else text
        member = name + (".gz" if "gz" in form else "")
        if "zip" in form:
            with zipfile.ZipFile(place / "any.zip", "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr(f"inner/{member}", data)
                archive.writestr("inner/README", "hello")
            made[place / "any.zip"] = form
        else:
            (place / member).write_bytes(data)
            made[place / member] = form
        made[place] = f"folder with {form}"
    (folder / "sub" / "set").mkdir(parents=True)
    (folder / "sub" / "set" / name).write_bytes(text)
    made[folder / "sub"] = "subfolder named as the data set"
    return made


def test_every_form_of_a_file_reads_alike(tmp_path):
    for path, form in forms(tmp_path, "log.csv", GOOD).items():
        found = find(path, ["log.csv"], "set", "get it")
        table = pa.Table.from_batches(Delimited(found, None).read(COLUMNS))
        assert table.to_pydict() == EXPECTED, form


def test_what_is_not_there_is_told(tmp_path):
    with pytest.raises(NotFound, match=r"no log.csv or log.csv.gz in .*; get it from the moon"):
        find(tmp_path, ["log.csv"], "set", "get it from the moon")
    with pytest.raises(NotFound, match=r"there is no .*nowhere; set dataset.path"):
        find(tmp_path / "nowhere", ["log.csv"], "set", "get it")


def test_two_zips_with_the_same_file_are_not_guessed_between(tmp_path):
    for name in ("a.zip", "b.zip"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("log.csv", GOOD)
    with pytest.raises(BadData, match=r"log.csv is in several zips, found \['a.zip', 'b.zip'\]; set dataset.path"):
        find(tmp_path, ["log.csv"], "set", "get it")
