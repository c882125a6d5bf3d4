"""Where records go, the journals' folder and the address of the MLflow store, and how MLflow is met."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

EXPERIMENT = "autodim"
ENVIRONMENT = {  # of a process that talks to MLflow, where the user has not set them: a dead server fails in seconds
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}


class StoreError(RuntimeError):
    """The MLflow store cannot be reached, or refuses what it is given."""


def store_uri(root: Path) -> str:
    """``MLFLOW_TRACKING_URI``, or the embedded database of the repository; a relative path counts from there."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    relative = re.fullmatch(r"sqlite:///([^/:].*)", uri)
    return f"sqlite:///{root / relative[1]}" if relative else uri


def folder(root: Path) -> Path:
    folder = root / ".pipeline" / "tracking"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def meeting_mlflow() -> Iterator[None]:
    """A block that may import and call MLflow; its links, warnings and logs are not for the user."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for noisy in ("mlflow", "alembic", "urllib3.connectionpool"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def refusal(uri: str, error: BaseException) -> str:
    text = re.sub(r"\s+", " ", str(error))[:200]
    place = re.sub(r"//[^/@]*@", "//", uri)  # no password in a message
    return (
        f"MLflow at {place} does not take the records ({type(error).__name__}: {text}); "
        "they stay in .pipeline/tracking, `python -m stages.sync` brings them in later"
    )
