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


def test_numbers_are_numeric_and_hashes_are_categorical(tmp_path):
    source = criteo.read(put(tmp_path, line()))
    assert [source.fields[name] for name in ("I1", "I13", "C1", "C26")] == ["numeric"] * 2 + ["categorical"] * 2
    assert len(source.fields) == 39


def test_hashes_that_look_like_numbers_keep_their_zeros(tmp_path):
    assert table(put(tmp_path, line(hashes=["00000012"] * 26)))["C3"].to_pylist() == ["00000012"]


def test_errors_in_a_file_name_the_line(tmp_path):
    for bad, message in (
        (line().removeprefix("1\t"), r"must have 40 values, has 39.* test.txt, with 39 values a line, has no labels"),
        (line("2"), r"column 'label' must be 0 or 1, got '2'"),
        (line(numbers=["x", *["1"] * 12]), r"column 'I1' must be a whole number, got 'x'"),
        (line(numbers=["1.5", *["1"] * 12]), r"column 'I1' must be a whole number, got '1.5'"),
    ):
        with pytest.raises(BadData, match=f"train.txt, line 2: {message}"):
            table(put(tmp_path, line() + bad))


def test_the_error_for_missing_data_says_where_to_get_them(tmp_path):
    with pytest.raises(NotFound, match=r"no train.txt or train.txt.gz in .*; get the Criteo .* into data/criteo"):
        criteo.read(tmp_path)
