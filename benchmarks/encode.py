"""Time and memory of encoding text of Criteo's shape as arrays of ids: this project, pandas, FuxiCTR.

Every job encodes the same file, from text to arrays on disk, in a process of its own. Values that occur ten times in
training rows get an id, the most frequent first. The limit is a job that only reads the text and counts its lines, on
one core, from the page cache if the file fits. The jobs of a round take turns; the results are medians of the rounds.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import criteo_file, timing
from benchmarks.alone import alone
from benchmarks.encoders.run import FUXICTR, PANDAS, PRODUCT, SCAN, run_job


def run(quick: bool) -> dict[str, Any]:
    """Half a million rows; in the long form also two million, eight million, and two million gzipped.

    FuxiCTR takes part at half a million.
    """
    results = measure(500_000, rounds=1 if quick else 3, fuxictr=True)
    if not quick:
        results += measure(2_000_000, rounds=3)
        results += measure(8_000_000)
        results += measure(2_000_000, gz=True)
    return {"cores": os.cpu_count(), "results": results, "targets": targets(results)}


def measure(rows: int, rounds: int = 1, gz: bool = False, fuxictr: bool = False) -> list[dict[str, Any]]:
    """Measure every job on one file.

    Args:
        rows: of the file, which is written to a temporary folder.
        rounds: number of rounds; the jobs take turns, so that other load on the machine slows all of them alike.
        gz: whether the file is gzipped.
        fuxictr: whether FuxiCTR takes part, in the first round.

    Returns:
        For each job ``rows``, ``job``, ``gz``, ``bytes`` of the file, the median ``seconds`` and those of all
        ``rounds``, ``cores`` that its first process used, ``rows_per_second``, ``peak_rss_mib``, ``times_limit``
        (seconds of the job divided by the scan's), ``times_pandas`` (seconds of pandas divided by the job's), and
        ``parts`` (seconds of each part of the job in the first round).
    """
    jobs = [SCAN, PRODUCT, PANDAS, *([FUXICTR] if fuxictr else [])]
    found: dict[str, list[dict[str, Any]]] = {job: [] for job in jobs}
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / ("train.txt.gz" if gz else "train.txt")
        print(f"encode: making {rows:,} rows", file=sys.stderr, flush=True)
        criteo_file.write(file, rows)
        for number in range(rounds):
            for job in jobs[: None if number == 0 else 3]:
                print(f"encode: {rows:,} rows{', gzipped' if gz else ''}, {job}", file=sys.stderr, flush=True)
                with tempfile.TemporaryDirectory(dir=name) as folder:
                    found[job].append(alone(run_job, job, str(file), folder))
        size = file.stat().st_size
    medians = {job: statistics.median(turn["seconds"] for turn in found[job]) for job in jobs}
    return [
        {
            "rows": rows,
            "job": job,
            "gz": gz,
            "bytes": size,
            "seconds": medians[job],
            "rounds": [turn["seconds"] for turn in found[job]],
            "cores": statistics.median(turn["cores"] for turn in found[job]),
            "rows_per_second": rows / medians[job],
            "peak_rss_mib": max(turn["peak_rss_mib"] for turn in found[job]),
            "times_limit": medians[job] / medians[SCAN],
            "times_pandas": medians[PANDAS] / medians[job],
            "parts": found[job][0]["parts"],
        }
        for job in jobs
    ]


def targets(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    ours = {row["rows"]: row for row in results if row["job"] == PRODUCT and not row["gz"]}
    found = [
        timing.target(f"encode {rows:,} rows, x pandas in chunks", row["times_pandas"], at_least=3)
        for rows, row in ours.items()
    ]
    if len(ours) > 1:
        flat = ours[8_000_000]["peak_rss_mib"] / ours[2_000_000]["peak_rss_mib"]
        found.append(timing.target("encode, peak memory at 8 M rows / at 2 M", flat, at_most=1.2))
    return found


def table(results: Mapping[str, Any]) -> str:
    rows = []
    for row in results["results"]:
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in row["parts"].items())
        job = f"{row['job']}{', gzipped' if row['gz'] else ''}{f' ({parts})' if parts else ''}"
        rows.append(
            (
                *(row["rows"], job, row["seconds"], row["cores"], row["rows_per_second"]),
                *(row["peak_rss_mib"], row["times_limit"], row["times_pandas"]),
            )
        )
    head = ("rows", "job", "seconds", "cores", "rows/s", "peak RSS, MiB", "x scan", "pandas / this")
    return "\n\n".join(
        [
            "## Encode",
            "From text of Criteo's shape to arrays of ids, each job in a process of its own. The scan only counts the "
            "lines: it is the limit.",
            timing.markdown(head, rows),
        ]
    )
