"""Where records go: the folder of the journals, the address of the MLflow store, the locks; and no passwords."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import IO, Any

EXPERIMENT = "autodim"
ENVIRONMENT = {  # for a process that calls MLflow, unless the user has set them: a dead server fails within seconds
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}
LOGIN = re.compile(r"(?<=://)[^\s/:@]*(:\S*)?@")  # up to the last "@": a password may hold one
PASSWORD = re.compile(r"(?<=[?&]password=)[^\s&]+")


class StoreError(RuntimeError):
    """The MLflow store does not answer, or refuses what it receives."""


def store_uri(root: Path) -> str:
    """``MLFLOW_TRACKING_URI``, or the database in the repository; a relative sqlite path starts at ``root``."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    relative = re.fullmatch(r"sqlite:///([^/:].*)", uri)
    return f"sqlite:///{root / relative[1]}" if relative else uri


def destination(root: Path, experiment: str) -> str:
    """A short name for the store and the experiment that this process records to."""
    return hashlib.sha256(f"{masked(store_uri(root))} {experiment}".encode()).hexdigest()[:12]


def folder(root: Path) -> Path:
    """Where the journals are, until the store has them."""
    return root / ".pipeline" / "tracking"


def lock_now(file: IO[bytes] | FileIO, shared: bool = False) -> bool:
    """Lock an open file. Returns False if another process holds the lock; closing the file unlocks it."""
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def locked(root: Path, name: str) -> Iterator[None]:
    """Hold the repository's lock of this name for the length of the block; wait for whoever holds it."""
    folder(root).mkdir(parents=True, exist_ok=True)
    with (folder(root) / f"{name}.lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def meeting_mlflow() -> Iterator[None]:
    """A block that may import and call MLflow, without its links, warnings and logs."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for noisy in ("mlflow", "alembic", "urllib3.connectionpool"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def storing(root: Path) -> Iterator[None]:
    """A block that calls the store; any error in it becomes a `StoreError` without passwords."""
    with meeting_mlflow():
        try:
            yield
        except StoreError:
            raise
        except Exception as error:  # MLflow, SQLAlchemy and requests share no base class
            raise StoreError(refusal(root, error)) from None  # the original text may hold a password


def masked(value: Any) -> Any:
    """The same text without passwords: ``scheme://user:password@host`` becomes ``scheme://***@host``.

    Args:
        value: text, or a mapping or sequence that holds text at any depth; anything else is returned as it is.
    """
    if isinstance(value, str):
        return PASSWORD.sub("***", LOGIN.sub("***@", value)) if "://" in value else value
    if isinstance(value, Mapping):
        return {name: masked(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [masked(item) for item in value]
    return value


def refusal(root: Path, error: BaseException) -> str:
    """What to tell the user when the store fails."""
    text = " ".join(masked(str(error)).split())[:200]
    return (
        f"MLflow at {masked(store_uri(root))} does not accept the records ({type(error).__name__}: {text}); "
        "they stay in .pipeline/tracking, and `python -m stages.sync` uploads them later"
    )
