"""Settings of a data set in a file of their own, ``params/<name>.yaml``, laid over params.yaml."""

from __future__ import annotations

import contextlib
import copy
import io
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.representer import RoundTripRepresenter

from pipeline.workflow.outputs import write_text
from pipeline.workflow.params import FILE, PLUGS
from pipeline.workflow.places import work
from pipeline.workflow.yaml_values import read_yaml, values_of

FOLDER = Path("params")
LAID = "laid.yaml"  # the params.yaml that `lay` wrote last


def overlays() -> list[str]:
    """Sorted names of the files in the folder of settings."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def committed() -> str | None:
    """The text of params.yaml in the last commit; None outside of a git repository that has it."""
    try:
        shown = subprocess.run(["git", "show", f"HEAD:./{FILE}"], capture_output=True, check=False)
    except FileNotFoundError:  # git is not installed
        return None
    return shown.stdout.decode("utf-8") if shown.returncode == 0 else None


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a nested mapping with changes. If ``name`` changes, the old ``options`` of that name are dropped.

    Args:
        base: the mapping, which stays unchanged.
        changes: new values, nested as in ``base``.
    """
    result = dict(copy.deepcopy(dict(base)))
    if "name" in result and changes.get("name", result["name"]) != result["name"]:
        result.pop("options", None)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both else copy.deepcopy(value)
    return result


def laid_over(base: str, path: Path) -> str:
    """The text of params.yaml with the settings of a file; comments stay.

    Args:
        base: the text of params.yaml.
        path: of the file, nested like params.yaml, with the settings that differ.

    Raises:
        ValueError: if the file is not a mapping.
    """
    changes = read_yaml(path)
    if not isinstance(changes, Mapping):
        raise ValueError(f"{path} must map sections of params.yaml to settings, got {changes!r}")
    values = merged(values_of(base), changes)
    if isinstance(own := changes.get("dataset"), Mapping) and "options" in own:
        values["dataset"]["options"] = own["options"]  # whole: columns of another table do not mix with them
    for section in PLUGS:
        values[section].setdefault("options", {})  # those of another data set or method are gone
    yaml = YAML()
    yaml.width, yaml.preserve_quotes, yaml.Representer = 4096, True, _Representer
    document = yaml.load(base)
    _set(document, values)
    written = io.StringIO()
    yaml.dump(document, written)
    return written.getvalue()


def keep(base: str) -> Path | None:
    """Copy params.yaml, unless it is the committed one or one that `lay` or `laid_over` made; the path of the copy."""
    text = FILE.read_text(encoding="utf-8") if FILE.is_file() else base
    copies = sorted(FOLDER.glob("kept-*.yaml"))
    if text == base or any(
        text == path.read_text(encoding="utf-8") for path in (*copies, work(LAID)) if path.is_file()
    ):
        return None
    for name in overlays():
        with contextlib.suppress(ValueError):  # a file that is no valid YAML did not make this text
            if text == laid_over(base, FOLDER / f"{name}.yaml"):
                return None
    numbers = [int(number) for path in copies if (number := path.stem.removeprefix("kept-")).isdecimal()]
    copy = FOLDER / f"kept-{max(numbers, default=0) + 1}.yaml"
    write_text(copy, text)
    return copy


def lay(text: str) -> None:
    """Write params.yaml, and remember its text, so that it counts as laid even after its overlay has changed."""
    write_text(work(LAID), text)
    if not FILE.is_file() or FILE.read_text(encoding="utf-8") != text:
        write_text(FILE, text)


def differences(base: Any, values: Any, place: str = "") -> Iterator[str]:
    """Every key whose values differ, with the new value, as ``search.epochs=4``."""
    if isinstance(base, Mapping) and isinstance(values, Mapping):
        for key in dict.fromkeys([*base, *values]):
            yield from differences(base.get(key), values.get(key), f"{place}.{key}" if place else str(key))
    elif base != values:
        yield f"{place}={'null' if values is None else values}"


class _Representer(RoundTripRepresenter):
    """Writes null as the word."""


_Representer.add_representer(type(None), lambda to, _: to.represent_scalar("tag:yaml.org,2002:null", "null"))


def _set(node: Any, values: Mapping[str, Any]) -> None:
    """Give a mapping of a YAML document these values; what is equal keeps its form and comments."""
    for key in [key for key in node if key not in values]:
        del node[key]
    for key, value in values.items():
        if value and isinstance(value, Mapping) and isinstance(node.get(key), Mapping):
            _set(node[key], value)
        elif key not in node or node[key] != value:
            node[key] = value
            if not value and isinstance(value, Mapping):
                node[key] = CommentedMap()
            if isinstance(value, list):
                node[key] = CommentedSeq(value)
                node[key].fa.set_flow_style()
