"""Identifies the configuration of a run, its parameters, its code and author, and its process."""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil


def configuration_key(configuration: Mapping[str, Any]) -> str:
    """A hash that names a configuration; the order of the parameters does not matter.

    Args:
        configuration: all parameters, nested.
    """
    canonical = json.dumps(configuration, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:20]


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten a nested mapping to text values; the name of a nested value has dots, e.g. ``model.lr``.

    Args:
        nested: the values.
        prefix: put before every name.
    """
    values: dict[str, str] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping) and value:
            values.update(flat(value, f"{prefix}{name}."))
        else:
            values[f"{prefix}{name}"] = value if isinstance(value, str) else json.dumps(value, default=str)
    return values


def origin(root: Path) -> dict[str, str]:
    """Tags with the user, the DVC experiment and the git commit; without the commit if git fails.

    Args:
        root: the repository.
    """
    origin = {"mlflow.user": getpass.getuser()}
    for name in ("DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        if name in os.environ:
            origin[name.lower().replace("_", ".", 1)] = os.environ[name]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        head, state = (
            subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True, timeout=10)
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
        origin["mlflow.source.git.commit"] = head.stdout.strip()
        origin["git.dirty"] = "true" if state.stdout.strip() else "false"
    return origin


def this_process() -> dict[str, str]:
    """Tags that identify this process: host, process id and start time, since the system reuses ids."""
    return {
        "pipeline.host": platform.node(),
        "pipeline.pid": str(os.getpid()),
        "pipeline.started": f"{psutil.Process().create_time():.2f}",
    }


def is_dead(tags: Mapping[str, str]) -> bool:
    """Whether the process with these tags has ended. A process on another host counts as alive.

    Args:
        tags: tags of a run, with those of `this_process`.
    """
    if tags.get("pipeline.host") != platform.node() or "pipeline.pid" not in tags:
        return False
    try:
        process = psutil.Process(int(tags["pipeline.pid"]))
        zombie = process.status() == psutil.STATUS_ZOMBIE
        return zombie or abs(process.create_time() - float(tags["pipeline.started"])) > 1
    except psutil.NoSuchProcess:
        return True
