"""Calls a function in a process of its own, so that memory and imports of others do not count.

This module is also the program of that process.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


class ProcessFailed(RuntimeError):
    """The process ended with an error.

    Args:
        name: of the function that it called.
        printed: what it wrote to its standard error.
    """

    def __init__(self, name: str, printed: str) -> None:
        super().__init__(f"{name} failed in a process of its own:\n{printed[-3000:]}")
        self.reason = (printed.strip().splitlines() or ["it printed nothing"])[-1]


def alone(function: Callable[..., Any], *arguments: str | int) -> Any:
    """Call a function in a new process, and return its result.

    Args:
        function: of a module; its result must be a JSON value.
        arguments: of the function.

    Raises:
        ProcessFailed: if the process ends with an error; the message has its output.
    """
    name = f"{function.__module__}.{function.__qualname__}"
    command = [sys.executable, "-m", "benchmarks.alone", function.__module__, function.__qualname__]
    done = subprocess.run([*command, json.dumps(arguments)], capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise ProcessFailed(name, done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def peak_mib() -> float:
    """Peak memory of this process so far, in MiB: VmHWM of Linux. (ru_maxrss would start at the parent's peak.)"""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def main() -> None:
    module, function, arguments = sys.argv[1:]
    print(json.dumps(getattr(importlib.import_module(module), function)(*json.loads(arguments))))


if __name__ == "__main__":
    main()
