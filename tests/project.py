"""A project folder of its own for a test: the repository's dvc.yaml and params.yaml with some values changed."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from pipeline.serving import latency
from pipeline.workflow import process

ROOT = Path(__file__).parents[1]
STAGES = ("ingest", "encode", "search", "derive", "retrain", "evaluate")
SMALL = {
    "search__epochs": 2,
    "search__batch_size": 200,
    "retrain__epochs": 2,
    "retrain__batch_size": 500,
    "retrain__seeds": [0, 1],
    "retrain__workers": 1,
}


class Project:
    """Runs stages in one process, in its own folder, with the journal as the only record.

    Args:
        link: give the folder the repository's code, which a stage checks that it runs.
        changes: parameters; see `give`.
    """

    def __init__(self, folder: Path, link: bool = True, **changes: Any) -> None:
        self.folder = folder
        for name in ("dvc.yaml", "params.yaml"):
            shutil.copy(ROOT / name, folder / name)
        (folder / "data").mkdir(exist_ok=True)  # the path of the planted data
        for name in ("pipeline", "stages", "sweep", "stream", "chain") if link else ():
            (folder / name).symlink_to(ROOT / name)
        self.give(**changes)

    def give(self, **changes: Any) -> Project:
        """Set parameters; ``search__architecture__order=2`` is ``search.architecture.order``. `gone` removes one."""
        values = yaml.safe_load((self.folder / "params.yaml").read_text())
        for name, value in changes.items():
            *parents, last = name.split("__")
            target = values
            for parent in parents:
                target = target[parent]
            if value is gone:
                del target[last]
            else:
                target[last] = value
        (self.folder / "params.yaml").write_text(yaml.safe_dump(values))
        return self

    def run(self, *stages: str) -> Project:
        for stage in stages:
            with self.inside():
                importlib.import_module(f"stages.{stage}").run()
        return self

    @contextlib.contextmanager
    def inside(self) -> Iterator[pytest.MonkeyPatch]:
        """Work in the folder; models are measured in this process instead of one of its own."""
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            for name in ("DVC_ROOT", "DVC_STAGE", "PIPELINE_TRACEBACK", "PIPELINE_SWEEP_STORAGE"):
                patch.delenv(name, raising=False)
            patch.setenv("OMP_NUM_THREADS", "1")
            patch.setenv("PIPELINE_TRACKING", "journal")
            patch.setattr(sys, "argv", ["stage"])
            patch.setattr(latency, "subprocess", SimpleNamespace(run=_serve, PIPE=None))
            patch.setattr(latency, "REPEATS", 2)
            yield patch

    def error(self, stage: str) -> str:
        """What a stage, started as DVC starts it, says in its one line before it ends with status 1."""
        handler = signal.getsignal(signal.SIGTERM)
        try:
            with self.inside(), contextlib.redirect_stderr(io.StringIO()) as printed, pytest.raises(SystemExit) as end:
                process.main(importlib.import_module(f"stages.{stage}").run)
        finally:
            signal.signal(signal.SIGTERM, handler)
        first, second = printed.getvalue().splitlines()
        assert end.value.code == 1 and first.startswith("error: ") and "PIPELINE_TRACEBACK" in second
        return first.removeprefix("error: ")

    def copy(self, folder: Path) -> Project:
        shutil.copytree(self.folder, folder, symlinks=True, dirs_exist_ok=True)
        return self.at(folder)

    @staticmethod
    def at(folder: Path) -> Project:
        """The project that is in a folder already."""
        there = object.__new__(Project)
        there.folder = folder
        return there

    def read(self, path: str) -> Any:
        return json.loads((self.folder / "artifacts" / path).read_text())

    def files(self) -> Mapping[str, bytes]:
        """All that is in ``artifacts``, by path."""
        found = {str(path.relative_to(self.folder)): path for path in (self.folder / "artifacts").rglob("*")}
        return {name: path.read_bytes() for name, path in found.items() if path.is_file()}


class _Gone:
    def __repr__(self) -> str:
        return "gone"


gone = _Gone()


def _serve(command: Sequence[str], **_: Any) -> subprocess.CompletedProcess[str]:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        latency.main(command[3], command[4:])
    return subprocess.CompletedProcess(command, 0, printed.getvalue(), "")
