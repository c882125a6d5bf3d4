"""What is told apart by what: configurations, the code and person behind a run, the process that writes it."""

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


def configuration_key(configuration: Mapping[str, Any]) -> str:
    """The name of a configuration: equal parameters, equal key, whatever their order."""
    canonical = json.dumps(configuration, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:20]


def origin(root: Path) -> dict[str, str]:
    """Tags that say who runs which code; without git, only who."""
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
    """What tells this process from any other, also from a later one of the same number."""
    import psutil

    return {
        "pipeline.host": platform.node(),
        "pipeline.pid": str(os.getpid()),
        "pipeline.started": f"{psutil.Process().create_time():.2f}",
    }


def is_dead(tags: Mapping[str, str]) -> bool:
    """Whether the process of `this_process` has ended; a process of another host counts as alive."""
    import psutil

    if tags.get("pipeline.host") != platform.node() or "pipeline.pid" not in tags:
        return False
    try:
        process = psutil.Process(int(tags["pipeline.pid"]))
        gone = process.status() == psutil.STATUS_ZOMBIE
        return gone or abs(process.create_time() - float(tags["pipeline.started"])) > 1
    except psutil.NoSuchProcess:
        return True
