"""What every parameter means, for ``--help`` and the docs; the texts stand in `pipeline.workflow.params`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

from pipeline.workflow.params import PLUGS, Params, value_at
from pipeline.workflow.plug import names
from pipeline.workflow.validation import Section, shown, words

WIDTH = 110


@dataclass(frozen=True)
class Entry:
    """One parameter.

    Attributes:
        key: dotted, e.g. ``retrain.seeds``.
        meaning: a text without a full stop.
        valid: the valid values in words.
        value: in params.yaml; None if it is not there.
    """

    key: str
    meaning: str
    valid: str
    value: Any


def entries(values: Any, keys: Sequence[str] | None = None) -> list[Entry]:
    """The parameters, in the order of `Params`.

    Args:
        values: the contents of params.yaml.
        keys: dotted; only these parameters and those below them. None: all.
    """
    every = _below(Params, "", values)
    return [e for e in every if keys is None or any(f"{e.key}.".startswith(f"{key}.") for key in keys)]


def _below(section: type[Section], above: str, values: Any) -> Iterator[Entry]:
    hints = get_type_hints(section, include_extras=True)
    for name, field in section.model_fields.items():
        key, hint = f"{above}{name}", hints[name]
        inner = next((kind for kind in (hint, *get_args(hint)) if _is_section(kind)), None)
        if inner is not hint:  # a mapping that can also be null is a parameter, and so are its keys
            yield Entry(key, " ".join((field.description or "").split()), _valid(key, hint), value_at(values, key))
        if inner is not None:
            yield from _below(inner, f"{key}.", values)


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)


def _valid(key: str, hint: Any) -> str:
    section, _, name = key.partition(".")
    return f"one of {', '.join(names(PLUGS[section]))}" if name == "name" and section in PLUGS else words(hint)


def as_text(of: Iterable[Entry]) -> str:
    """The parameters with their values and meanings, for a terminal."""
    lines = []
    for entry in of:
        value = textwrap.shorten(shown(entry.value), WIDTH - len(entry.key), placeholder=" ...")
        lines.append(f"  {entry.key}: {value}")
        about = f"{entry.meaning}. Valid: {entry.valid}."
        lines += textwrap.wrap(about, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)
