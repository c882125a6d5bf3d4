"""YAML that would take much time or memory is refused; all else is read."""

import os
from pathlib import Path

import pytest

from pipeline.workflow.yaml_values import MOST, read_yaml, values_of


def laughs(levels: int) -> str:
    """Lists of nine times the list before, each a line: 9 ** levels words when written out."""
    lines = ["a0: &a0 [" + ", ".join(["lol"] * 9) + "]"]
    lines += [f"a{i}: &a{i} [" + ", ".join([f"*a{i - 1}"] * 9) + "]" for i in range(1, levels)]
    return "\n".join(lines)


def test_aliases_are_read(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("one: &one [1, 2]\ntwo: *one\nthree: {<<: &m {a: 1}, b: 2}\n")
    assert read_yaml(tmp_path / "x.yaml") == {"one": [1, 2], "two": [1, 2], "three": {"a": 1, "b": 2}}
    assert len(values_of(laughs(3))["a2"]) == 9


@pytest.mark.parametrize("text", [laughs(10), laughs(60), "a: &a [1, *a]", f"a: &a {'x' * 9999}\nb: [{'*a, ' * 999}]"])
def test_aliases_that_grow_without_bound_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^here must be at most 2,097,152 characters long with its aliases"):
        values_of(text, "here")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("a: " + "[" * 5000, "x is nested too deeply; correct it"),
        ("a: 1" + "0" * 5000, "x is not YAML: Exceeds the limit"),
        ("a: 2024-13-45", "x is not YAML: month must be in 1..12"),
        ("a: 1\na: 2", 'x is not YAML: .*found duplicate key "a"'),
        ("a: !!python/object:os.system {}", "x is not YAML: could not determine a constructor"),
    ],
)
def test_what_is_no_yaml_of_settings_is_refused_in_one_line(text: str, named: str) -> None:
    with pytest.raises(ValueError, match=named) as error:
        values_of(text, "x")
    assert "\n" not in str(error.value)


def test_a_file_that_is_too_long_or_none_is_refused_without_reading_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(ValueError, match=f"^{place} must be a file, not a folder, a pipe or a device"):
            read_yaml(place)
    long = tmp_path / "long.yaml"
    with long.open("wb") as file:
        file.truncate(1 << 40)  # takes no room on the disk
    with pytest.raises(ValueError, match=f"long.yaml must be at most {MOST:,} bytes long"):
        read_yaml(long)


def test_a_file_in_another_encoding_is_named_with_the_line(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes("a: 1\nb: Zürich\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"x\.yaml, line 2: is not UTF-8; save the file as UTF-8"):
        read_yaml(tmp_path / "x.yaml")
