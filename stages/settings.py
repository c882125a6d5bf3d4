"""Outside the main job: lays the settings of a data set, params/<name>.yaml, over the committed params.yaml.

    python -m stages.settings movielens_1m    # `make repro PARAMS=movielens_1m` does this first
    python -m stages.settings                 # says which settings differ from the committed ones

The result is written to params.yaml. It depends only on the two files, so nothing that was changed in params.yaml
before has an effect. If params.yaml holds changes that are in no other file, it is first copied to params/kept-1.yaml.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.representer import RoundTripRepresenter

from pipeline.workflow import process
from pipeline.workflow.outputs import write_text
from pipeline.workflow.params import FILE, PLUGS, Params, read_yaml
from pipeline.workflow.validation import suggestion, validated

FOLDER = Path("params")


def run(name: str | None) -> None:
    """Write params.yaml with the settings of a name; without one, only compare it with the committed file.

    Raises:
        ValueError: if there are no such settings, or they are not valid; params.yaml stays as it is.
    """
    base = committed()
    if name is None:
        if base is not None and (differing := list(differences(_values(base), read_yaml(FILE)))):
            print(f"settings: params.yaml differs from the commit: {', '.join(differing)}")
        return
    if base is None:
        raise ValueError(
            "settings are laid over the committed params.yaml, but git has none here; copy those of "
            f"{FOLDER}/{name}.yaml into params.yaml"
        )
    there = overlays()
    if name not in there:
        raise ValueError(
            f"there are no settings {name!r}{suggestion(name, there)}; the files of {FOLDER} are {', '.join(there)}"
        )
    from pipeline.experiment.experiment import check_params  # torch takes seconds, and a comparison does without it

    text = laid_over(base, name)
    check_params(validated(Params, _values(text), f"{FOLDER / name}.yaml"))
    if kept := keep(base):
        print(f"settings: params.yaml had changes of its own; it is copied to {kept}, and PARAMS={kept.stem} uses it")
    if not FILE.is_file() or FILE.read_text(encoding="utf-8") != text:
        write_text(FILE, text)
    print(f"settings: params.yaml holds those of {FOLDER / name}.yaml; all others are as committed")


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


def laid_over(base: str, name: str) -> str:
    """The text of params.yaml with the settings of a name; comments stay.

    Raises:
        ValueError: if the file of the settings is not a mapping.
    """
    from pipeline.studies.grid import merged  # as above

    path = FOLDER / f"{name}.yaml"
    changes = read_yaml(path)
    if not isinstance(changes, Mapping):
        raise ValueError(f"{path} must map sections of params.yaml to settings, got {changes!r}")
    values = merged(_values(base), changes)
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
    """Copy params.yaml, unless it is the committed one or one that this command wrote; the path of the copy."""
    text = FILE.read_text(encoding="utf-8") if FILE.is_file() else base
    copies = sorted(FOLDER.glob("kept-*.yaml"))
    if text == base or any(text == path.read_text(encoding="utf-8") for path in copies):
        return None
    for name in overlays():
        with contextlib.suppress(ValueError):  # a file that is no valid YAML did not make this text
            if text == laid_over(base, name):
                return None
    numbers = [int(number) for path in copies if (number := path.stem.removeprefix("kept-")).isdecimal()]
    copy = FOLDER / f"kept-{max(numbers, default=0) + 1}.yaml"
    write_text(copy, text)
    return copy


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


def _values(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", help=f"of a file in {FOLDER}/, without .yaml")
    options = parser.parse_args(sys.argv[1:])
    process.main(lambda: run(options.name), arguments=True)


if __name__ == "__main__":
    main()
