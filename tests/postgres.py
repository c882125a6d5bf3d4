"""A PostgreSQL server of its own, in a temporary folder, reached by a socket there."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PASSWORD = "hunter2"


class Postgres:
    """A server that can be stopped and started.

    Args:
        folder: with a short path, since its socket is there.
        user, password: of the superuser.
    """

    def __init__(self, folder: Path, user: str, password: str) -> None:
        self.folder = folder
        self.address = f"postgresql://{user}:{password}@/postgres?host={folder}"
        (folder / "password").write_text(password)
        self._owner: dict[str, Any] = {}
        if os.getuid() == 0:  # the server refuses to be root's
            self._owner = {"user": "nobody", "group": "nogroup", "extra_groups": []}
            for path in (folder, folder / "password"):
                shutil.chown(path, "nobody", "nogroup")
        made = ["-U", user, "-A", "scram-sha-256", "--pwfile=password", "-E", "UTF8", "--no-sync", "-D", "data"]
        self._call("initdb", *made)
        self.start()

    def start(self) -> None:
        options = f"-c listen_addresses='' -k {self.folder} -F"
        self._call("pg_ctl", "-w", "-D", "data", "-l", "log", "-o", options, "start")

    def stop(self) -> None:
        """Stop it at once, as in a crash."""
        self._call("pg_ctl", "-D", "data", "-m", "immediate", "stop")

    def _call(self, *command: str) -> None:
        environment = {"PATH": f"{_programs()}:{os.environ['PATH']}", "LC_ALL": "C"}
        place = {"cwd": self.folder, "env": environment, "stdout": subprocess.DEVNULL}
        subprocess.run(command, check=True, **place, **self._owner)


def _programs() -> Path:
    return (sorted(Path("/usr/lib/postgresql").glob("*/bin")) or [Path(shutil.which("initdb") or "").parent])[-1]


def absent() -> str:
    """What is missing on this machine; empty if nothing is."""
    here = (_programs() / "initdb").is_file() and find_spec("psycopg") is not None
    return "" if here else "needs PostgreSQL and psycopg"


@contextlib.contextmanager
def serving(user: str = "sweep", password: str = PASSWORD) -> Iterator[Postgres]:
    """A server for the length of the block."""
    with tempfile.TemporaryDirectory(prefix="pg", ignore_cleanup_errors=True) as name:
        server = Postgres(Path(name), user, password)
        try:
            yield server
        finally:
            server.stop()
