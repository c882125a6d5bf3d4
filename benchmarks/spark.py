"""Spark beside the local engine: ingest and encode a text file of Criteo's shape, to the same bytes.

Each job runs in a process of its own. Processor time and memory are those of this process and of all that it started:
Java, the workers' Pythons, and for the cluster also its master and its two workers, which run on this machine.

    python -m benchmarks.spark --rows 1000000
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import criteo_file, timing
from benchmarks.alone import alone
from benchmarks.encoders.with_spark import CLUSTER, CORES, LOCAL, job


def measure(rows: int) -> list[dict[str, Any]]:
    """Run every job once on one file.

    Raises:
        RuntimeError: if a job writes other bytes than the first one.
    """
    found = []
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "train.txt"
        criteo_file.write(file, rows)
        for what in (LOCAL, CORES, CLUSTER):
            print(f"spark: {rows:,} rows, {what}", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory(dir=name) as folder:
                found.append({"job": what, "rows": rows, **alone(job, what, str(file), folder)})
            if found[-1]["digest"] != found[0]["digest"]:
                raise RuntimeError(f"{what} writes other bytes than {LOCAL}")
    return found


def table(found: list[dict[str, Any]]) -> str:
    head = ["job", "seconds", "of which start", "processor s", "rows / processor s", "peak memory, MiB"]
    rows = [
        [row["job"], row["seconds"], row["start"], row["processor"], row["rows"] / row["processor"], row["peak_mib"]]
        for row in found
    ]
    return timing.markdown(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    print(table(measure(parser.parse_args().rows)))


if __name__ == "__main__":
    main()
