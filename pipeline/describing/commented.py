"""Nested settings with a comment on each, and the YAML that they make."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
NOT_TEXT = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}  # in YAML 1.1 or 1.2
COMMENTS_AT = 34  # the column in which comments begin


@dataclass(frozen=True)
class Said:
    """A setting, or an item of a list, with a comment."""

    value: Any
    comment: str


class Quoted(str):
    """A text that stands in quotes even if it need not, so that it is seen to be a text."""


def plain(tree: Any) -> Any:
    """The settings without their comments."""
    if isinstance(tree, Said):
        return plain(tree.value)
    if isinstance(tree, Mapping):
        return {name: plain(value) for name, value in tree.items()}
    return [plain(value) for value in tree] if isinstance(tree, list) else tree


def yaml_of(tree: Mapping[str, Any]) -> str:
    """The settings as YAML: a line for each, an empty line between sections, numbers of a list on one line."""
    sections = ["\n".join(_lines(name, value, "")) for name, value in tree.items()]
    return "\n\n".join(sections) + "\n"


def _lines(name: str, value: Any, indent: str) -> Iterator[str]:
    value, comment = (value.value, value.comment) if isinstance(value, Said) else (value, "")
    begin = f"{indent}{_scalar(name)}:"
    if isinstance(value, Mapping):
        yield _beside(begin, comment)
        for key, inner in value.items():
            yield from _lines(key, inner, indent + "  ")
    elif isinstance(value, list) and any(isinstance(item, Said) for item in value):
        yield _beside(begin, comment)
        for item in value:
            yield _beside(f"{indent}  - {_scalar(item.value)}", item.comment)
    elif isinstance(value, list):
        yield _beside(f"{begin} [{', '.join(map(_scalar, value))}]", comment)
    else:
        yield _beside(f"{begin} {_scalar(value)}", comment)


def _scalar(value: Any) -> str:
    """A number, a word as it is, or any other text in quotes."""
    word = isinstance(value, str) and not isinstance(value, Quoted) and PLAIN.fullmatch(value)
    if word and value.lower() not in NOT_TEXT:
        return value
    return json.dumps(value, ensure_ascii=not (isinstance(value, str) and value.isprintable()))


def _beside(text: str, comment: str) -> str:
    return f"{text.ljust(COMMENTS_AT - 2)}  # {comment}" if comment else text
