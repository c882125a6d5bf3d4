import pyarrow as pa
import pytest

from pipeline.datasets import criteo
from pipeline.sources.source import BadData, NotFound


def line(label="1", numbers=("1", "-2", *["3"] * 11), hashes=("68fd1e64",) * 26):
    return "\t".join([label, *numbers, *hashes]) + "\n"


def table(path):
    return pa.Table.from_batches(criteo.read(path).batches)


def put(folder, text, name="train.txt"):
    (folder / name).write_text(text)
    return folder


def test_a_line_by_hand(tmp_path):
    blank = line("0", ["", "0", *["7"] * 11], ["", *["05db9164"] * 25])
    found = table(put(tmp_path, line() + blank))
    assert found.column_names == ["label", *(f"I{i}" for i in range(1, 14)), *(f"C{i}" for i in range(1, 27))]
    assert found["label"].to_pylist() == [1, 0]
    assert found["I1"].to_pylist() == [1, None]
    assert found["I2"].to_pylist() == [-2, 0]
    assert found["I13"].to_pylist() == [3, 7]
    assert found["C1"].to_pylist() == ["68fd1e64", None]
    assert found["C26"].to_pylist() == ["68fd1e64", "05db9164"]


def test_kinds(tmp_path):
    source = criteo.read(put(tmp_path, line()))
    assert [source.fields[name] for name in ("I1", "I13", "C1", "C26")] == ["numeric"] * 2 + ["categorical"] * 2
    assert len(source.fields) == 39


def test_hashes_of_digits_alone_keep_their_zeros(tmp_path):
    assert table(put(tmp_path, line(hashes=["00000012"] * 26)))["C3"].to_pylist() == ["00000012"]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (line().removeprefix("1\t"), r"train.txt, line 2: 39 values where 40 are expected.*test.txt \(39 values\)"),
        (line("2"), r"train.txt, line 2: column 'label' must be 0 or 1, found '2'"),
        (line(numbers=["x", *["1"] * 12]), r"train.txt, line 2: column 'I1' must be a whole number, found 'x'"),
        (line(numbers=["1.5", *["1"] * 12]), r"train.txt, line 2: column 'I1' must be a whole number, found '1.5'"),
    ],
)
def test_bad_lines_are_told(tmp_path, bad, message):
    with pytest.raises(BadData, match=message):
        table(put(tmp_path, line() + bad))


def test_absent_data_are_told_with_where_to_get_them(tmp_path):
    with pytest.raises(NotFound, match=r"no train.txt or train.txt.gz in .*; get the Criteo .* into data/criteo"):
        criteo.read(tmp_path)
