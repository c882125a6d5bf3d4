"""Outside the main job: lays the settings of a data set, params/<name>.yaml, over the committed params.yaml.

    python -m stages.settings movielens_1m    # `make repro PARAMS=movielens_1m` does this first
    python -m stages.settings                 # says which settings differ from the committed ones

The result is written to params.yaml. It depends only on the two files, so nothing that was changed in params.yaml
before has an effect. If params.yaml holds changes that are in no other file, it is first copied to params/kept-1.yaml.
"""

from __future__ import annotations

import argparse
import sys

from pipeline.workflow import process
from pipeline.workflow.overlay import FOLDER, committed, differences, keep, laid_over, lay, overlays
from pipeline.workflow.params import FILE, Params
from pipeline.workflow.validation import suggestion, validated
from pipeline.workflow.yaml_values import read_yaml, values_of


def run(name: str | None) -> None:
    """Write params.yaml with the settings of a name; without one, only compare it with the committed file.

    Raises:
        ValueError: if there are no such settings, or they are not valid; params.yaml stays as it is.
    """
    base = committed()
    if name is None:
        if base is not None and (differing := list(differences(values_of(base), read_yaml(FILE)))):
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

    overlay = FOLDER / f"{name}.yaml"
    text = laid_over(base, overlay)
    check_params(validated(Params, values_of(text), str(overlay)), str(overlay))
    if kept := keep(base):
        print(f"settings: params.yaml had changes of its own; it is copied to {kept}, and PARAMS={kept.stem} uses it")
    lay(text)
    print(f"settings: params.yaml holds those of {overlay}; all others are as committed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", help=f"of a file in {FOLDER}/, without .yaml")
    options = parser.parse_args(sys.argv[1:])
    process.main(lambda: run(options.name), arguments=True)


if __name__ == "__main__":
    main()
