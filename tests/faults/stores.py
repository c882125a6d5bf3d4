"""MLflow's store is down, slow, dying, read-only or full, and PostgreSQL dies under a sweep."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import requests

from pipeline.sweeps.storage import STORAGE
from tests.faults.bench import Bench, Problems, in_one_line, last_words, occupied, resize, small_disk, unmountable
from tests.faults.line import Case, Line
from tests.faults.oracle import runs
from tests.faults.processes import Running, forked, until
from tests.postgres import absent, serving
from tests.tracking.conftest import Server, free_address

LATENCY = 2.0  # seconds that the slow store takes to answer
LATEST = 240.0  # seconds in which a follower must have ended, also with a slow store
PAGE = 4096
FOLLOWED = {"PIPELINE_TRACKING": ""}  # records go to MLflow while the command runs


def lines() -> dict[str, Line]:
    return {
        "store-down": Line(partial(_each, down)),
        "store-slow": Line(partial(_each, slow)),
        "store-dying": Line(partial(_each, dying)),
        "store-readonly": Line(partial(_each, read_only), unmountable),
        "store-full": Line(partial(_each, full), unmountable),
        "postgres": Line(_of_postgres, absent),
    }


def _each(act: Callable[[str, Bench], Problems], times: int, draw: random.Random) -> Iterator[Case]:
    yield partial(act, "search")


def _followed(job: str, place: Path, uri: str, bench: Bench) -> Problems:
    """The command must succeed whatever the store does, and no process may be left."""
    running = bench.start(job, place, **FOLLOWED, MLFLOW_TRACKING_URI=uri)
    yield from _went_well(running)
    yield from bench.alone(place, LATEST)


def _went_well(running: Running) -> Problems:
    if running.wait():
        yield f"it ends with {running.status}: {last_words(running)}"


def down(job: str, bench: Bench) -> Problems:
    """Nobody answers; later the records go to the project's own database."""
    place = bench.project(job)
    yield from _followed(job, place, free_address(), bench)
    yield from bench.same(job, place)


def slow(job: str, bench: Bench) -> Problems:
    """Every answer of a server takes `LATENCY`."""
    place, server = _served(job, bench)
    address = free_address()
    proxy = forked(lambda: asyncio.run(_delay(address, server.uri)), bench.folder, bench.folder / "printed-proxy")
    try:
        yield from _followed(job, place, address, bench)
        yield from bench.same(job, place, server.uri, server.folder / "mlflow.db")
    finally:
        proxy.send(signal.SIGKILL)
        server.kill()


async def _delay(address: str, uri: str) -> None:
    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: float) -> None:
        while content := await reader.read(1 << 16):
            await asyncio.sleep(seconds)
            writer.write(content)
            await writer.drain()
        writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, questions = await asyncio.open_connection("127.0.0.1", int(uri.rpartition(":")[2]))
        await asyncio.gather(copy(reader, questions, LATENCY), copy(answers, writer, 0.0), return_exceptions=True)

    await (await asyncio.start_server(connected, "127.0.0.1", int(address.rpartition(":")[2]))).serve_forever()


def dying(job: str, bench: Bench) -> Problems:
    """A server is killed once it has some of the records, and comes back after the command."""
    place, server = _served(job, bench)
    database = server.folder / "mlflow.db"
    try:
        before = len(runs(database))

        def die(running: Running) -> None:
            running.send(signal.SIGSTOP)  # so that the records are not all there
            if not until(lambda: len(runs(database)) > before, LATEST):
                bench.late = True
            server.kill()
            running.send(signal.SIGCONT)

        running = bench.disturbed(job, place, 0.5, die, **FOLLOWED, MLFLOW_TRACKING_URI=server.uri)
        yield from _went_well(running)
        yield from bench.alone(place, LATEST)
        server.start()
        _healthy(server)
        yield from bench.same(job, place, server.uri, database)
    finally:
        server.kill()


def served(database: Path, folder: Path) -> Server:
    """A server that answers, on a copy of a database."""
    folder.mkdir()
    shutil.copy(database, folder / "mlflow.db")
    server = Server(folder, free_address())
    _healthy(server)
    return server


def _served(job: str, bench: Bench) -> tuple[Path, Server]:
    place = bench.project(job)
    return place, served(place / "mlflow.db", bench.folder / "server")


def _healthy(server: Server) -> None:
    def answers() -> bool:
        try:
            return bool(requests.get(f"{server.uri}/health", timeout=5).ok)
        except requests.RequestException:
            return False

    if not until(answers, LATEST):
        server.kill()
        raise TimeoutError("mlflow server does not start")


def read_only(job: str, bench: Bench) -> Problems:
    place = bench.project(job)
    with _on_a_disk(place, bench) as disk:
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        yield from _followed(job, place, _uri(disk), bench)
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        yield from bench.same(job, place, _uri(disk), disk / "mlflow.db")


def full(job: str, bench: Bench) -> Problems:
    place = bench.project(job)
    with _on_a_disk(place, bench) as disk:
        resize(disk, occupied(disk) + 2 * PAGE)
        yield from _followed(job, place, _uri(disk), bench)
        resize(disk, None)
        yield from bench.same(job, place, _uri(disk), disk / "mlflow.db")


@contextlib.contextmanager
def _on_a_disk(place: Path, bench: Bench) -> Iterator[Path]:
    """A disk that holds a copy of a project's database, and nothing else."""
    with small_disk(bench.folder / "disk") as disk:
        shutil.copy(place / "mlflow.db", disk)
        yield disk


def _uri(disk: Path) -> str:
    return f"sqlite:///{disk / 'mlflow.db'}"


def _of_postgres(times: int, draw: random.Random) -> Iterator[Case]:
    for restarted in (False, True):
        yield partial(postgres, "sweep", draw.random(), restarted)


def postgres(job: str, share: float, at_once: bool, bench: Bench) -> Problems:
    """PostgreSQL, which keeps the trials, is killed, and started again at once or after the sweep."""
    with serving() as server:
        place, given = bench.project(job), {STORAGE: server.address}

        def crash(running: Running) -> None:
            server.stop()
            if at_once:
                server.start()

        running = bench.disturbed(job, place, share, crash, **given)
        if running.wait():
            yield from in_one_line(running)
        if not (at_once or bench.late):
            server.start()
        yield from bench.alone(place)
        yield from bench.again(job, place, **given)
