"""A stage in a process of its own, called by `benchmarks.alone`."""

from __future__ import annotations

import importlib
import os
import time

from benchmarks.alone import peak_mib


def run_stage(stage: str, folder: str) -> dict[str, float]:
    """Run a stage in a folder, without MLflow.

    Returns:
        ``seconds``, and seconds of ``processor`` of this process and those that it started; ``peak_mib`` of this one.
    """
    os.chdir(folder)
    os.environ["PIPELINE_TRACKING"] = "journal"
    began = time.monotonic()
    importlib.import_module(f"stages.{stage}").run()
    used = os.times()
    processor = used.user + used.system + used.children_user + used.children_system
    return {"seconds": time.monotonic() - began, "processor": processor, "peak_mib": peak_mib()}
