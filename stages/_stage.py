"""What all stages share: parameters, a fingerprint, outputs that appear whole or not at all, an orderly end."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from pipeline.tracking import Tracker

RAW = Path("artifacts/raw")
ENCODED = Path("artifacts/encoded")
SCORES = Path("artifacts/search/scores.json")
MODELS = Path("artifacts/models")
POLL_SECONDS = 1.0


def root() -> Path:
    """The repository itself, even where `dvc exp run --temp` works in a copy of it."""
    return Path(os.environ.get("DVC_ROOT", ".")).resolve()


def params(stage: str) -> dict[str, Any]:
    """The parameters that ``dvc.yaml`` declares for a stage, and no others.

    A stage can therefore not depend on a parameter that DVC does not know it depends on.
    """
    declared = yaml.safe_load(Path("dvc.yaml").read_text())["stages"][stage].get("params", [])
    values = yaml.safe_load(Path("params.yaml").read_text())
    given: dict[str, Any] = {}
    for key in declared:
        source, target = values, given
        *parents, last = key.split(".")
        for parent in parents:
            source, target = source[parent], target.setdefault(parent, {})
        if last not in source:
            raise ValueError(f"params.yaml has no {key!r}, which stage {stage!r} needs")
        target[last] = source[last]
    return given


def all_params() -> dict[str, Any]:
    """The whole of params.yaml, for the name of the configuration in MLflow; no stage computes with it."""
    values: dict[str, Any] = yaml.safe_load(Path("params.yaml").read_text())
    return values


def fingerprint(stage: str, contents: Iterable[str | Path] = ()) -> str:
    """Names what a stage is about to compute: its parameters, its code, and the contents of small inputs.

    Args:
        stage: supplies the declared parameters and, from ``deps`` in dvc.yaml, the code files.
        contents: files whose bytes count, e.g. a schema.json, which holds checksums of the large arrays.
    """
    digest = hashlib.sha256(json.dumps(params(stage), sort_keys=True).encode())
    deps = yaml.safe_load(Path("dvc.yaml").read_text())["stages"][stage]["deps"]
    code = sorted(re.sub(r"\$\{([\w.]+)\}", _value, path) for path in deps if path.endswith(".py"))
    for path in [*code, *map(str, contents)]:
        digest.update(path.encode() + b"\0" + Path(path).read_bytes())
    return digest.hexdigest()[:20]


def _value(reference: re.Match[str]) -> str:
    """What ``${section.key}`` in dvc.yaml stands for."""
    value: Any = all_params()
    for key in reference[1].split("."):
        value = value[key]
    return str(value).replace("-", "_")


def tracker(stage: str, key: str, raw_sha256: str | None = None, later: bool = False) -> Tracker:
    """Where a stage's runs are recorded: MLflow, through ``artifacts/runs/<stage>.jsonl``.

    Args:
        key: names what the stage computes, e.g. its `fingerprint`.
        raw_sha256: checksum of the raw table, by which MLflow tells data sets apart; schema.json's if left out.
        later: do not wait for the upload; for stages that are shorter than it.
    """
    from pipeline.tracking import Tracker

    given = all_params()
    tags = {name: given[name]["name"] for name in ("dataset", "backbone", "method")}
    digest = raw_sha256 or json.loads((ENCODED / "schema.json").read_text())["raw_sha256"]
    dataset = {"name": given["dataset"]["name"], "digest": digest[:36], "source": given["dataset"]["path"]}
    publish = f"artifacts/runs/{stage}.jsonl"
    return Tracker(root(), stage, key, given, tags=tags, dataset=dataset, publish=publish, later=later)


@contextlib.contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """A place to write ``path`` (file or folder) to; it becomes ``path`` only if the block ends without error."""
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    draft = final.with_name(f".{final.name}.{os.getpid()}")
    try:
        yield draft
        if final.is_dir():
            shutil.rmtree(final)
        draft.replace(final)
    finally:
        if draft.is_dir():
            shutil.rmtree(draft)
        else:
            draft.unlink(missing_ok=True)


def main(run: Callable[[], None]) -> None:
    """Run a stage as a process: end when DVC ends, end in order on SIGTERM, report bad input in one line."""
    signal.signal(signal.SIGTERM, _terminate)
    watched = _dvc_ancestors()
    if watched:
        threading.Thread(target=_end_with, args=(watched,), daemon=True).start()
    try:
        run()
    except (ValueError, FileNotFoundError) as error:
        if os.environ.get("PIPELINE_TRACEBACK"):
            traceback.print_exc()
        print(f"error: {error}\n(the traceback is shown with PIPELINE_TRACEBACK=1)", file=sys.stderr)
        sys.exit(1)


def _terminate(signum: int, frame: FrameType | None) -> None:
    sys.exit(128 + signum)


def _dvc_ancestors() -> list[tuple[int, float]]:
    """(pid, start time) of the processes between this one and the dvc that started it, dvc included."""
    if "DVC_STAGE" not in os.environ:
        return []
    import psutil

    chain = []
    for parent in psutil.Process().parents():
        chain.append((parent.pid, parent.create_time()))
        with contextlib.suppress(psutil.Error):
            if any("dvc" in Path(word).name for word in parent.cmdline()[:3]):
                return chain
    return chain[:1]


def _end_with(watched: list[tuple[int, float]]) -> None:
    """SIGTERM to dvc does not reach the stage it runs; without this the stage would train on, unrecorded."""
    import psutil

    while True:
        time.sleep(POLL_SECONDS)
        for pid, started in watched:
            try:
                alive = psutil.Process(pid).create_time() == started
            except psutil.NoSuchProcess:
                alive = False
            if not alive:
                os.kill(os.getpid(), signal.SIGTERM)
                return
