"""The folder of the journals, the address of the MLflow store, locks, and the masking of passwords."""

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
ENVIRONMENT = {  # defaults for a process that calls MLflow: a dead server fails within seconds
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}
TAG_CHARACTERS = 5000  # longest value of a tag
LOGIN = re.compile(r"(?<=://)[^\s/:@]*(:\S*)?@")  # up to the last "@": a password may hold one
PASSWORD = re.compile(r"(?<=[?&]password=)[^\s&]+")


class StoreError(RuntimeError):
    """The MLflow store does not answer, or refuses what it receives."""


def store_uri(root: Path) -> str:
    """The address of the store: ``MLFLOW_TRACKING_URI``, or ``mlflow.db`` in the repository.

    Args:
        root: the repository; a relative path of an SQLite database starts there.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    relative = re.fullmatch(r"sqlite:///([^/:].*)", uri)
    return f"sqlite:///{root / relative[1]}" if relative else uri


def destination(root: Path, experiment: str) -> str:
    """A short hash that names the store and the experiment of this process.

    Args:
        root: the repository.
        experiment: name of the experiment in MLflow.
    """
    return hashlib.sha256(f"{masked(store_uri(root))} {experiment}".encode()).hexdigest()[:12]


def folder(root: Path) -> Path:
    """The folder that holds the journals until the store has them."""
    return root / ".pipeline" / "tracking"


def lock_now(file: IO[bytes] | FileIO, shared: bool = False) -> bool:
    """Lock an open file without waiting. Returns False if another process holds the lock.

    Args:
        file: the open file; closing it unlocks it.
        shared: whether other processes may hold a shared lock at the same time.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def locked(root: Path, name: str) -> Iterator[None]:
    """Hold a lock for the length of the block; wait until no other process holds it.

    Args:
        root: the repository, or the folder that holds a shared database.
        name: of the lock.
    """
    folder(root).mkdir(parents=True, exist_ok=True)
    with (folder(root) / f"{name}.lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def meeting_mlflow() -> Iterator[None]:
    """Silence the links, warnings and logs of MLflow for the length of the block, and set `ENVIRONMENT`."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for noisy in ("mlflow", "alembic", "urllib3.connectionpool"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def storing(root: Path) -> Iterator[None]:
    """Call the store in the block, silenced as in `meeting_mlflow`.

    Args:
        root: the repository.
    Raises:
        StoreError: for any error in the block, with passwords masked.
    """
    with meeting_mlflow():
        try:
            yield
        except StoreError:
            raise
        except Exception as error:  # MLflow, SQLAlchemy and requests share no base class
            raise StoreError(refusal(root, error)) from None  # the original text may hold a password


def masked(value: Any) -> Any:
    """Mask the passwords in a text: ``scheme://user:password@host`` becomes ``scheme://***@host``.

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
    """The message for the user when the store fails, with passwords masked.

    Args:
        root: the repository.
        error: of the store.
    """
    text = " ".join(masked(str(error)).split())[:200]
    return (
        f"MLflow at {masked(store_uri(root))} does not accept the records ({type(error).__name__}: {text}); "
        "they stay in .pipeline/tracking, and `python -m stages.sync` uploads them later"
    )
