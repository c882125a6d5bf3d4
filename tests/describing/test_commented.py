"""Settings as YAML with comments."""

from pathlib import Path

import pytest

from pipeline.describing.commented import Quoted, Said, plain, yaml_of
from pipeline.workflow.yaml_values import read_yaml

NAMES = [
    "None",
    "null",
    "yes",
    "NO",
    "1",
    "1e5",
    "#x",
    ": x",
    "a: b",
    "- a",
    "'q'",
    '"q"',
    "a b",
    "Größe",
    "🙂",
    "\x85",
]
NAMES += [
    "",
    " ",
    "~",
    "a\tb",
    "a\nb",
    "\\N",
    "{x}",
    "[x]",
    "%",
    "@",
    "*a",
    "&a",
    "!a",
    "|",
    ">",
    "0x10",
    ".5",
    "?",
    "=",
    "\x07",
]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_and_text_is_read_back_as_it_was(name: str, tmp_path: Path) -> None:
    tree = {
        name: Said([Said(name, "a comment"), Said("x", "")], "it is"),
        "flow": [name, 1],
        "text": {"in": Said(name, "#")},
    }
    (tmp_path / "x.yaml").write_text(yaml_of(tree))
    assert read_yaml(tmp_path / "x.yaml") == plain(tree) == {name: [name, "x"], "flow": [name, 1], "text": {"in": name}}


def test_a_setting_stands_on_a_line_with_its_comment() -> None:
    tree = {"a": {"b": Said(Quoted("yes"), "a word"), "c": [1, 2]}, "d": Said([Said("x", "first")], "all")}
    assert [line.split() for line in yaml_of(tree).splitlines()] == [
        ["a:"],
        ["b:", '"yes"', "#", "a", "word"],
        ["c:", "[1,", "2]"],
        [],
        ["d:", "#", "all"],
        ["-", "x", "#", "first"],
    ]
    assert '"word"' in yaml_of({"a": Quoted("word")}) and '"' not in yaml_of({"a": "word"})
