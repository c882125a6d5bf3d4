"""Show the results in MLflow: save views that compare configurations and show the newest search, and serve them.

If ``MLFLOW_TRACKING_URI`` names a server, its address is printed and nothing is started. ``MLFLOW_HOST`` and
``MLFLOW_PORT`` say where the server of this command listens; without them at 127.0.0.1, port 5000.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path

from pipeline.tracking.place import StoreError, store_uri
from pipeline.tracking.view import results_page, search_page
from pipeline.workflow import process
from pipeline.workflow.params import Params
from pipeline.workflow.places import root
from pipeline.workflow.plug import plug


def run() -> None:
    objective = next(iter(plug("tasks", Params.load().task.name).METRICS))
    try:
        page, charts = results_page(root(), _columns(objective)), search_page(root(), objective)
    except StoreError as error:
        sys.exit(f"error: {error}")
    store = store_uri(root())
    host, port = os.environ.get("MLFLOW_HOST", "127.0.0.1"), os.environ.get("MLFLOW_PORT", "5000")
    served = store.startswith("http")
    address = re.sub(r"(?<=://)[^/]*@", "", store).rstrip("/") if served else f"http://{host}:{port}"
    print(f"A row for each configuration, its verdict and figures: {address}{page}", flush=True)
    if charts:
        print(f"The newest search, a chart for each field: {address}{charts}", flush=True)
    if served:
        return
    environment = {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # for GenAI; eight more processes
        **os.environ,
        "MLFLOW_BACKEND_STORE_URI": store,  # not an argument: it may hold a password
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }
    command = [sys.executable, "-m", "mlflow", "ui", "--host", host, "--port", port, "--workers", "1"]
    command += ["--uvicorn-opts", "--lifespan off"]  # on Ctrl-C, uvicorn would show a traceback of its lifespan
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # MLflow would show another; uvicorn, which it starts, ends both
    os.execve(sys.executable, command, environment)


def _columns(objective: str) -> dict[str, int]:
    """The columns beside name, age and duration, with their widths."""
    allocations = ("searched", "full", "uniform", "random")
    metrics = ["searched/bytes", "searched/of_full", *(f"{name}/{objective}" for name in allocations)]
    widths = {f"metrics.`{name}`": 110 for name in metrics}
    return {"tags.`verdict`": 480, **widths, "params.`derive.budget`": 120}


if __name__ == "__main__":
    process.main(run)
