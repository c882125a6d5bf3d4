"""The local engine, Spark on two cores, and a cluster of two workers on this machine; see `benchmarks.spark`."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks.encoders import MIN_COUNT, SHARES, product
from benchmarks.encoders.run import watched
from pipeline.datasets import criteo
from pipeline.encoding.encode import encode
from pipeline.workflow.address import ADDRESS
from pipeline.workflow.outputs import write_json
from pipeline.workflow.params import Encode

LOCAL, CORES, CLUSTER = "local", "spark, local[2]", "spark, two workers"
WAIT_SECONDS = 120


def job(name: str, file: str, folder: str) -> dict[str, Any]:
    """Run one job: its ``seconds``, of which ``start`` are Spark's start, ``processor`` seconds, ``peak_mib``, and a
    ``digest`` of what it wrote."""
    raw, encoded = Path(folder) / "raw", Path(folder) / "encoded"
    engine = "local" if name == LOCAL else "spark"
    settings = Encode.model_validate({"split": {"by": "random", **SHARES}, "min_count": MIN_COUNT, "engine": engine})
    with watched() as peak, _cluster(Path(folder)) if name == CLUSTER else contextlib.nullcontext("local[2]") as master:
        before, started = _processor(), time.perf_counter()
        if name == LOCAL:
            product.ingest(criteo.read(Path(file)), raw)
        else:
            _start(master)
            raw.mkdir()
            record = {ADDRESS: Path(file).as_uri(), "dataset": "criteo", "options": {}, "sha256": "0" * 64}
            write_json(raw / "raw.json", record)
        between = time.perf_counter()
        encode(raw, encoded, settings)
        seconds = time.perf_counter() - started
        processor = _processor() - before
        digest = hashlib.sha256()
        for path in sorted(encoded.rglob("*")):
            if path.is_file() and path.name != "schema.json":  # which names the raw rows
                digest.update(path.read_bytes())
    start = 0.0 if name == LOCAL else between - started
    return {
        "seconds": seconds,
        "start": start,
        "processor": processor,
        "peak_mib": peak[0],
        "digest": digest.hexdigest(),
    }


def _start(master: str) -> None:
    os.environ["PYSPARK_SUBMIT_ARGS"] = (
        f"--master {master} --driver-memory 2g --conf spark.driver.host=127.0.0.1 --conf spark.ui.enabled=false "
        "--conf spark.executor.memory=1g pyspark-shell"
    )
    os.environ["PYSPARK_PYTHON"] = sys.executable
    from pyspark.sql import SparkSession

    SparkSession.builder.getOrCreate()


@contextlib.contextmanager
def _cluster(folder: Path) -> Iterator[str]:
    """A master and two workers of one core each, as processes of this machine; yields the master's address."""
    import pyspark

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(pyspark.__file__).parent / "bin" / "spark-class")]
    place = ["--host", "127.0.0.1", "--webui-port", "0"]
    master = f"spark://127.0.0.1:{port}"
    deploy = "org.apache.spark.deploy"
    commands = [[*command, f"{deploy}.master.Master", *place, "--port", str(port)]]
    for number in range(2):
        work = ["-c", "1", "-m", "2g", "-d", str(folder / f"worker-{number}"), master]
        commands.append([*command, f"{deploy}.worker.Worker", *place, *work])
    with contextlib.ExitStack() as stack:
        for started in commands:
            process = stack.enter_context(subprocess.Popen(started, stderr=subprocess.DEVNULL))
            stack.callback(process.terminate)
            _await(port)
        yield master


def _await(port: int) -> None:
    until = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.2)
    raise TimeoutError(f"Spark's master does not answer within {WAIT_SECONDS} s")


def _processor() -> float:
    """Processor time so far of this process and of all that it started."""
    me = psutil.Process()
    total = 0.0
    for process in [me, *me.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            total += sum(process.cpu_times()[:4])
    return total
