"""Bring to MLflow what DVC restored from its cache, and what was recorded while the store was down.

``dvc repro`` starts no process for a stage that has not changed; this gives its configuration the run it would miss.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

from pipeline import tracking
from stages import _stage


def run() -> None:
    values = _stage.configuration()
    stages = yaml.safe_load(Path("dvc.yaml").read_text())["stages"]
    published = [Path(f"artifacts/runs/{stage}.jsonl") for stage in current(list(stages), _stage.all_params())]
    there = [path for path in published if path.is_file()]
    try:
        lines = tracking.synchronise(_stage.root(), values, there, complete=len(there) == len(stages))
    except tracking.StoreError as error:
        sys.exit(f"error: {error}")
    for line in lines:
        print(line)


def current(stages: list[str], values: dict[str, Any]) -> list[str]:
    """The stages, in order, up to the first whose last run used other parameters than params.yaml holds now.

    What comes after it belongs to another configuration. Without a dvc.lock, which says so, all of them.
    """
    if not Path("dvc.lock").is_file():
        return stages
    locked = yaml.safe_load(Path("dvc.lock").read_text()).get("stages", {})
    for place, stage in enumerate(stages):
        used = locked.get(stage, {}).get("params", {}).get("params.yaml", {})
        changed = [name for name, value in used.items() if _lookup(values, name) != value]
        if stage not in locked or changed:
            why = f"{', '.join(changed)} changed since" if changed else "it has not run yet"
            print(f"{stage} and what follows are not synchronised: {why}; run `dvc repro` first", file=sys.stderr)
            return stages[:place]
    return stages


def _lookup(values: Any, name: str) -> Any:
    for part in name.split("."):
        if not isinstance(values, dict) or part not in values:
            return None
        values = values[part]
    return values


if __name__ == "__main__":
    _stage.main(run)
