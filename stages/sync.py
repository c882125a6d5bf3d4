"""Copy to MLflow the results that DVC restored from its cache, and those recorded while the store was unavailable.

``dvc repro`` starts no process for a stage that has not changed, so such a stage records no run; this command adds it.
With ``--follow``, it runs on and copies the records of stages as they are written, until nothing is left to do.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.tracking.follow import follow
from pipeline.tracking.place import EXPERIMENT, StoreError
from pipeline.tracking.sync import synchronise
from pipeline.workflow import process
from pipeline.workflow.params import Params
from pipeline.workflow.places import RUNS, root
from pipeline.workflow.yaml_values import read_yaml


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--follow", action="store_true", help="also copy what stages write from now on")
    if parser.parse_args().follow:
        with contextlib.suppress(KeyboardInterrupt):
            if not follow(root(), EXPERIMENT, os.getppid()):
                print("another process already copies the records of stages to MLflow")
        return
    recorded = [
        name for name, stage in read_yaml(Path("dvc.yaml"))["stages"].items() if _journal(name) in stage["outs"]
    ]
    changes = _changes()
    current = [] if changes is None else list(_current(recorded, changes))
    journals = [_journal(stage) for stage in current]
    try:
        lines = synchronise(root(), Params.load().configuration(), journals, complete=current == recorded)
    except StoreError as error:
        sys.exit(f"error: {error}")
    for line in lines:
        print(line)


def _journal(stage: str) -> str:
    return (RUNS / f"{stage}.jsonl").as_posix()


def _changes() -> dict[str, list[dict[str, Any]]] | None:
    """The output of ``dvc status`` for each changed stage of the main job; None if the command fails."""
    command = [sys.executable, "-m", "dvc", "status", "--json", "dvc.yaml"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(f"artifacts/runs is left out: `dvc status` failed: {done.stderr.strip()}", file=sys.stderr)
        return None
    return json.loads(done.stdout)


def _current(stages: Sequence[str], changes: Mapping[str, list[dict[str, Any]]]) -> Iterator[str]:
    """The stages, in order, whose journals are up to date with params.yaml and the code; stops at the first other one.

    Later journals belong to another configuration, or to none. A deleted file changes no result.
    """
    for stage in stages:
        changed = sorted(_changed(changes.get(stage, [])))
        if not Path(_journal(stage)).is_file():
            changed.insert(0, _journal(stage))
        if changed:
            print(
                f"{stage} and what follows are not synchronised: {', '.join(changed)} changed since it ran; run "
                "`dvc repro` first",
                file=sys.stderr,
            )
            return
        yield stage


def _changed(changes: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Names of the changed files and parameters in a stage's output of ``dvc status``, without deleted files."""
    for change in changes:
        if isinstance(change, str):  # e.g. "changed command"
            yield change
            continue
        for kind in ("changed deps", "changed outs"):
            for path, state in change.get(kind, {}).items():
                if isinstance(state, Mapping):  # parameters of a file
                    yield from state.get("modified", state)
                elif state != "deleted":
                    yield path


if __name__ == "__main__":
    process.main(run, arguments=True)
