"""The nodes of a Ray cluster as the place where the stages of a study run, each as a task.

All nodes must see the repository at the same path, with its virtual environment: a task runs the command that this
machine would run, in the same folder. So the results, their keys and their checkpoints are the same files.
"""

from __future__ import annotations

import math
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.workflow.code import ROOT

EXTRA = 'pip install -e ".[ray]"'
PASSED = ("DVC_ROOT", "PIPELINE_", "MLFLOW_", "AWS_")  # beginnings of the variables that the stages get from here
TRACKING = "PIPELINE_TRACKING"
PART = 10_000  # parts of a GPU that Ray can count


class Cluster:
    """Runs each command as a task on a node of a Ray cluster.

    A task is not repeated if its node dies: the study reports the cell, and its next run goes on from the checkpoint.
    GPUs are shared by the cells. If MLflow's store is a database file, the nodes write journals only, because such a
    file cannot be shared safely.

    Args:
        address: of the cluster, for Ray: ``ray://host:10001``, or ``auto`` on one of the nodes.
        jobs: cells that run at the same time; by default one for each processor of the cluster.

    Raises:
        ValueError: if Ray is not installed, or the cluster cannot be used.
    """

    def __init__(self, address: str, jobs: int | None = None) -> None:
        try:
            import ray  # takes seconds, and is an extra
        except ModuleNotFoundError as error:
            raise ValueError(f"--on {address} needs the package {error.name}; install it: {EXTRA}") from error
        try:
            ray.init(address, log_to_driver=False, logging_level="ERROR")
        except (ImportError, OSError, RuntimeError, ValueError) as error:  # of a cluster, of versions, of an address
            why = f"the Ray cluster cannot be used: {_line(error)}; docs/deploy.md says how to start it"
            raise ValueError(f"--on {address}: {why}") from error
        self._ray, self._running = ray, set[Any]()
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cpus = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1]  # a head node may offer none
        gpus = sum(node.get("GPU", 0) for node in nodes)
        if not cpus:
            raise ValueError(f"--on {address}: no node offers a processor; start one with `ray start --address=...`")
        self.jobs = jobs or sum(cpus)
        self._threads = max(1, min(sum(cpus) // self.jobs, *cpus))
        share = PART // math.ceil(self.jobs / gpus) / PART if gpus else 0.0  # so that all cells find a place
        self._task = ray.remote(num_cpus=self._threads, num_gpus=share, max_retries=0)(_task())
        self._given = {name: value for name, value in os.environ.items() if name.startswith(PASSED)}
        if (os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:").startswith("sqlite:"):
            self._given[TRACKING] = "journal"

    def run(self, command: Sequence[str], output: Path) -> int:
        folder = str(Path.cwd())
        reference = self._task.remote(list(command), str(ROOT), folder, str(output), self._threads, self._given)
        self._running.add(reference)
        try:
            return int(self._ray.get(reference))
        except self._ray.exceptions.RayError as error:
            raise RuntimeError(_line(getattr(error, "cause", None) or error)) from error
        finally:
            self._running.discard(reference)

    def stop(self) -> None:
        for running in list(self._running):
            self._ray.cancel(running, force=True)  # ends the process of the task, and the command ends with that


def _task() -> Callable[[list[str], str, str, str, int, Mapping[str, str]], int]:
    """The function that a node runs. Ray sends an inner function as it is, so a node without the code can say so."""

    def run(command: list[str], code: str, folder: str, output: str, threads: int, given: Mapping[str, str]) -> int:
        if not Path(folder).is_dir():
            raise OSError(f"the node {platform.node()} has no {folder}; all nodes must see the repository at this path")
        sys.path.insert(0, code)
        from pipeline.studies.machines import start

        os.chdir(folder)
        return start(command, Path(output), threads, given).wait()

    return run


def _line(error: BaseException) -> str:
    """The message of an error of Ray in one line, without advice; of one that quotes another, the last line, too."""
    first, *rest = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return f"{first} {rest[-1]}" if rest and first.endswith(":") else first
