"""Two pipelines on one store at the same time, and a clock that is set back."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

from tests.faults.base import JOBS
from tests.faults.bench import Bench, Problems, last_words
from tests.faults.line import Case, Line
from tests.faults.processes import Running, environment, started
from tests.faults.stores import FOLLOWED, served
from tests.project import ROOT

LIBRARY = "libfaketime.so.1"


def lines() -> dict[str, Line]:
    return {
        "one-store": Line(lambda times, draw: [partial(two, "search", on_server) for on_server in (False, True)]),
        "clock-back": Line(_backwards, _clock),
    }


def two(job: str, on_server: bool, bench: Bench) -> Problems:
    """Two checkouts with the same parameters record to one MLflow, a database or a server."""
    places = [bench.project(job, name) for name in ("first", "second")]
    database = bench.folder / "shared/mlflow.db"
    if on_server:
        server = served(places[0] / "mlflow.db", database.parent)
        uri = server.uri
    else:
        database.parent.mkdir()
        shutil.copy(places[0] / "mlflow.db", database)
        uri = f"sqlite:///{database}"
    try:
        both = [bench.start(job, place, **FOLLOWED, MLFLOW_TRACKING_URI=uri) for place in places]
        for running in both:
            if running.wait():
                yield f"it ends with {running.status}: {last_words(running)}"
        for place in places:
            yield from bench.alone(place)
        for place in places:
            yield from bench.same(job, place, uri, database)
    finally:
        if on_server:
            server.kill()


def _backwards(times: int, draw: random.Random) -> Iterator[Case]:
    for job in ("search", "sweep"):
        yield partial(backwards, job, draw.random())


def backwards(job: str, share: float, bench: Bench) -> Problems:
    """A kill; then the clock shows the day before."""
    place = bench.project(job)
    command = [sys.executable, "-m", JOBS[job].module]

    def start(**variables: str) -> Running:
        return started(
            command, place, bench.printed(job), PYTHONPATH=str(ROOT), PIPELINE_TRACKING="journal", **variables
        )

    running = start()
    moment = bench.begun(running, place, job) + share * bench.base.control(job).seconds
    bench.at(running, moment, lambda one: one.send(signal.SIGKILL))
    running.wait()
    yield from bench.alone(place)
    again = start(**_yesterday())
    if again.wait():
        yield f"the same command a day before ends with {again.status}: {last_words(again)}"
        return
    yield from bench.alone(place)
    yield from bench.same(job, place)


def _yesterday() -> dict[str, str]:
    """The environment of a process whose clock is a day late."""
    places = [*Path("/usr/lib").glob(f"*/faketime/{LIBRARY}"), *Path("/usr/lib").glob(f"*/{LIBRARY}")]
    folders = [str(place.parent) for place in places] + [os.environ.get("LD_LIBRARY_PATH", "")]
    shift = {"FAKETIME": "-1d", "FAKETIME_DONT_FAKE_MONOTONIC": "1", "NO_FAKE_STAT": "1"}
    return {**shift, "LD_PRELOAD": LIBRARY, "LD_LIBRARY_PATH": os.pathsep.join(filter(None, folders))}


@cache
def _clock() -> str:
    """Why no clock can be changed; empty if one can."""
    shown = [
        subprocess.run(["date", "+%F"], env=environment(**given), capture_output=True, text=True, check=True).stdout
        for given in ({}, _yesterday())
    ]
    return "needs libfaketime" if shown[0] == shown[1] else ""
