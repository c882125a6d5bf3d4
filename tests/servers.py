"""Servers that tests start on this machine: PostgreSQL, MLflow's and S3's."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import requests


@contextmanager
def database(user: str, password: str) -> Iterator[str]:
    """The address of a PostgreSQL server of its own, on a socket, with the user and the password in it."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin")) or [Path(shutil.which("initdb") or "").parent]
    if not (places[-1] / "initdb").is_file() or find_spec("psycopg") is None:
        pytest.skip("needs PostgreSQL and psycopg")
    with tempfile.TemporaryDirectory(prefix="pg", ignore_cleanup_errors=True) as name:  # short, for the socket's sake
        folder = Path(name)
        (folder / "password").write_text(password)
        owner: dict[str, Any] = {}
        if os.getuid() == 0:  # the server refuses to be root's
            owner = {"user": "nobody", "group": "nogroup", "extra_groups": []}
            for path in (folder, folder / "password"):
                shutil.chown(path, "nobody", "nogroup")

        def call(*command: str) -> None:
            environment = {"PATH": f"{places[-1]}:{os.environ['PATH']}", "LC_ALL": "C"}
            subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, check=True, **owner)

        made = ["-U", user, "-A", "scram-sha-256", "--pwfile=password", "-E", "UTF8", "--no-sync", "-D", "data"]
        call("initdb", *made)
        call("pg_ctl", *["-w", "-D", "data", "-l", "log", "-o"], f"-c listen_addresses='' -k {folder} -F", "start")
        yield f"postgresql://{user}:{password}@/postgres?host={folder}"
        call(*["pg_ctl", "-D", "data", "-m", "immediate", "stop"])


def free_address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def answers(address: str, seconds: float = 120) -> bool:
    """Whether something answers at an address before the time is over."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if requests.get(address, timeout=1).ok:
                return True
        except (requests.ConnectionError, requests.Timeout):
            pass
        time.sleep(0.1)
    return False
