"""Reads YAML that a person wrote, in bounded time and memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

MOST = 1 << 21  # characters of a text, and of its values with every alias written out


def read_yaml(path: str | Path) -> Any:
    """The value in a YAML file; see `values_of`.

    Raises:
        ValueError: naming the file, if it is too long, or not YAML in UTF-8.
        FileNotFoundError: if the file does not exist.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} must be a file, not a folder, a pipe or a device; write the settings to a file")
    with path.open("rb") as file:
        content = file.read(MOST + 1)
    if len(content) > MOST:
        raise ValueError(f"{path} must be at most {MOST:,} bytes long; shorten it")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line}: is not UTF-8; save the file as UTF-8") from error
    return values_of(text, str(path))


def values_of(text: str, place: str = "params.yaml") -> Any:
    """The value of a text in YAML, read as DVC reads it: in YAML 1.2, ``1e-05`` is a number and ``yes`` is a text.

    Args:
        text: to read.
        place: of the text, for messages.

    Raises:
        ValueError: naming the place, if the text is not YAML, or if its aliases make it too long.
    """
    try:
        value = YAML(typ="safe", pure=True).load(text)
    except RecursionError as error:
        raise ValueError(f"{place} is nested too deeply; correct it") from error
    except (YAMLError, ValueError) as error:  # ValueError: a date or a number that cannot be
        raise ValueError(f"{place} is not YAML: {' '.join(str(error).split())}; correct it") from error
    if _length(value, {}) > MOST:
        raise ValueError(
            f"{place} must be at most {MOST:,} characters long with its aliases (*name) written out; use fewer"
        )
    return value


def _length(value: Any, known: dict[int, int]) -> int:
    """About the number of characters of a value with its aliases written out; above `MOST` if it contains itself."""
    if not isinstance(value, dict | list):
        return len(value) if isinstance(value, str) else 1
    if id(value) not in known:
        known[id(value)] = MOST + 1  # until its own length is known
        items = [*value, *value.values()] if isinstance(value, dict) else value
        known[id(value)] = sum(_length(item, known) for item in items)
    return known[id(value)]
