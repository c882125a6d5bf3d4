"""A file is found in every form in which people keep it."""

import gzip
import os
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from pipeline.sources.files import DataFile, find, table_files
from pipeline.sources.source import BadData, NotFound

GOOD = b"label,price,count,word\n0,1.5,3,x\n1,,4,\n"


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
        assert [line for _, line in found.lines()] == GOOD.splitlines(), form


def test_the_error_for_a_missing_file_says_where_to_get_it(tmp_path):
    with pytest.raises(NotFound, match=r"no log.csv or log.csv.gz in .*; get it from the moon"):
        find(tmp_path, ["log.csv"], "set", "get it from the moon")
    with pytest.raises(NotFound, match=r"there is no .*nowhere; set dataset.path"):
        find(tmp_path / "nowhere", ["log.csv"], "set", "get it")


def test_two_zips_with_the_same_file_are_an_error(tmp_path):
    for name in ("a.zip", "b.zip"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("log.csv", GOOD)
    with pytest.raises(BadData, match=r"log.csv must be in one zip, got \['a.zip', 'b.zip'\]; set dataset.path"):
        find(tmp_path, ["log.csv"], "set", "get it")


def test_the_only_file_is_found_in_a_folder_and_in_a_zip(tmp_path):
    (tmp_path / "log.csv").write_bytes(GOOD)
    (tmp_path / "notes.md").write_text("not a table")
    for path in (tmp_path, tmp_path / "log.csv"):
        assert table_files(path, [".csv", ".zip"]) == [DataFile(tmp_path / "log.csv")]
    file = tmp_path / "b.zip"
    for members in (["log.csv"], ["log.csv", "other.csv"], []):
        with zipfile.ZipFile(file, "w") as archive:
            for member in ("__MACOSX/log.csv", "inner/", *(f"inner/{name}" for name in members)):
                archive.writestr(member, GOOD)
        if len(members) == 1:
            assert table_files(file, []) == [DataFile(file, "inner/log.csv")]
        else:
            with pytest.raises(BadData, match=r"b.zip: must hold exactly one file, got \[.*\]; unzip the right one"):
                table_files(file, [])
    with pytest.raises(BadData, match=r"holds no file whose name ends in .tsv; name the file or the folder"):
        table_files(tmp_path, [".tsv"])
    with pytest.raises(NotFound, match=r"there is no .*nowhere.csv; set dataset.path in params.yaml to the table"):
        table_files(tmp_path / "nowhere.csv", [])


def test_pipes_and_encrypted_zips_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for call in (lambda path: table_files(path, []), lambda path: find(path, ["log.csv"], "set", "get it")):
        for path in (tmp_path / "pipe", Path(os.devnull)):
            with pytest.raises(BadData, match=r"must be a file or a folder, not a pipe or a device; set "):
                call(path)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("log.csv", GOOD)
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1  # the flag of encryption in the central directory
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(BadData, match=r"a.zip:log.csv: must not be encrypted; unzip it with its password first"):
        table_files(tmp_path / "a.zip", [])


def test_a_line_without_an_end_is_refused_before_it_fills_the_memory(tmp_path):
    path = tmp_path / "log.csv.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(64):
            file.write(b"x" * (1 << 20))
    tracemalloc.start()
    with pytest.raises(BadData, match=r"line 1: must be at most 1,048,576 bytes long, got b'xxx"):
        DataFile(path).first_line()
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


def test_a_zip_with_a_damaged_list_of_its_files_is_named(tmp_path):
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("log.csv", GOOD)
    data = bytearray(file.read_bytes())
    data[data.index(b"PK\x01\x02")] = 0
    file.write_bytes(data)
    with pytest.raises(BadData, match=r"a.zip: cannot be read \(.*\); the file is damaged or incomplete: download"):
        table_files(file, [])
