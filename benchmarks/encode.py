"""How fast text of Criteo's shape becomes arrays of ids, and in how much memory: this project, pandas, FuxiCTR.

Every job reads the same file in a process of its own, from text to arrays on disk: values known by training rows that
show them ten times, ids by falling count. Limits beside them: the same text read and its lines counted, from the file
as it is (in the page cache where it fits) on one core. Jobs of a round take turns; medians of the rounds.

    python -m benchmarks.encode --rows 500000 2000000
    python -m benchmarks.encode --rows 2000000 --gz
    python -m benchmarks.encode --rows 500000 --fuxictr
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

NUMBERS = [f"I{i}" for i in range(1, 14)]
HASHES = [f"C{i}" for i in range(1, 27)]
SHARES = {"train": 0.7, "arch": 0.1, "val": 0.1, "test": 0.1}
MIN_COUNT = 10
CHUNK_ROWS = 200_000  # of the pandas job


def run(quick: bool) -> dict[str, Any]:
    """Half a million rows, or also two and eight, and two gzipped; FuxiCTR at the first."""
    from benchmarks import timing

    first = measure([500_000], rounds=1 if quick else 3, fuxictr=True)
    results = first["results"]
    targets = []
    if not quick:
        results += measure([2_000_000], rounds=3)["results"]
        results += measure([8_000_000])["results"]
        results += [row | {"job": f"{row['job']}, gzipped"} for row in measure([2_000_000], gz=True)["results"]]
    ours = {row["rows"]: row for row in results if row["job"] == "product"}
    for rows, row in ours.items():
        targets.append(timing.target(f"encode {rows:,} rows, x pandas in chunks", row["times_pandas"], at_least=3))
    if len(ours) > 1:
        flat = ours[8_000_000]["peak_rss_mib"] / ours[2_000_000]["peak_rss_mib"]
        targets.append(timing.target("encode, peak memory at 8 M rows / at 2 M", flat, at_most=1.2))
    return {"results": results, "targets": targets}


def measure(
    rows: Sequence[int] = (500_000, 2_000_000), rounds: int = 1, gz: bool = False, fuxictr: bool = False
) -> dict[str, Any]:
    """Measure every job at every number of rows.

    Args:
        rows: of the files, which are made in a temporary folder and deleted after.
        rounds: the jobs of a round follow each other, so that a busy machine troubles all alike.
        gz: the file is gzipped.
        fuxictr: whether FuxiCTR takes part, in the first round.

    Returns:
        ``results``: for each file and job ``rows``, ``job``, ``bytes`` of the file, median ``seconds`` and all
        ``rounds``, ``cores`` that its first process was given, ``rows_per_second``, ``peak_rss_mib``,
        ``times_limit`` (seconds by those of the scan), ``times_pandas`` (seconds of pandas by its own), and
        ``parts`` (seconds of each half of the job in the first round).
    """
    from benchmarks import criteo_file

    jobs = ["scan", "product", "pandas", *(["fuxictr"] if fuxictr else [])]
    results = []
    for n in rows:
        with tempfile.TemporaryDirectory() as place:
            file = Path(place) / ("train.txt.gz" if gz else "train.txt")
            criteo_file.write(file, n)
            found: dict[str, list[dict[str, float]]] = {job: [] for job in jobs}
            for _ in range(rounds):
                for job in jobs:
                    if job == "fuxictr" and found[job]:
                        continue
                    print(f"encode: {n:,} rows{', gzipped' if gz else ''}, {job}", file=sys.stderr, flush=True)
                    found[job].append(_measured(job, file))
            medians = {job: statistics.median(one["seconds"] for one in found[job]) for job in jobs}
            for job in jobs:
                results.append(
                    {
                        "rows": n,
                        "job": job,
                        "bytes": file.stat().st_size,
                        "seconds": medians[job],
                        "rounds": [one["seconds"] for one in found[job]],
                        "cores": statistics.median(one["cores"] for one in found[job]),
                        "rows_per_second": n / medians[job],
                        "peak_rss_mib": max(one["peak_rss_mib"] for one in found[job]),
                        "times_limit": medians[job] / medians["scan"],
                        "times_pandas": medians["pandas"] / medians[job],
                        "parts": found[job][0].get("parts", {}),
                    }
                )
    return {"benchmark": "encode", "gz": gz, "cores": os.cpu_count(), "results": results}


def table(record: dict[str, Any]) -> str:
    """The results of `run` or `measure` in Markdown."""
    lines = [
        "## Encode",
        "",
        "Text of Criteo's shape to arrays of ids, each job in a process of its own. Scan counts the lines: the limit.",
        "",
        "| rows | job | seconds | cores | rows/s | peak RSS, MiB | x scan | pandas / it |",
        "|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in record["results"]:
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in row["parts"].items())
        lines.append(
            f"| {row['rows']:,} | {row['job']}{f' ({parts})' if parts else ''} | {row['seconds']:.2f} "
            f"| {row['cores']:.1f} | {row['rows_per_second']:,.0f} | {row['peak_rss_mib']:,.0f} "
            f"| {row['times_limit']:.1f} | {row['times_pandas']:.2f} |"
        )
    return "\n".join(lines)


def _measured(job: str, file: Path) -> dict[str, Any]:
    """Seconds of a job within its process, imports left out, and the peak of the memory of its processes."""
    with tempfile.TemporaryDirectory(dir=file.parent) as out:
        command = [sys.executable, __file__, "--job", job, str(file), out]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    record: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return record


def _peak_rss_mib() -> float:
    """Of this process: what Linux calls VmHWM. (ru_maxrss would start at the parent's, which fork copies.)"""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def _scan(file: Path, out: Path) -> Callable[[], dict[str, float]]:
    import pyarrow as pa

    def job() -> dict[str, float]:
        lines = 0
        with pa.OSFile(str(file)) as raw:
            stream = pa.CompressedInputStream(raw, "gzip") if file.suffix == ".gz" else raw
            while block := stream.read(8 << 20):
                lines += block.count(b"\n")
        return {}

    return job


def _product(file: Path, out: Path) -> Callable[[], dict[str, float]]:
    from pipeline.datasets import criteo
    from pipeline.encoding.encode import Settings, encode
    from pipeline.sources.raw import write_raw

    def job() -> dict[str, float]:
        started = time.perf_counter()
        raw = out / "raw"
        raw.mkdir()
        record = write_raw(criteo.read(file), raw / "table.parquet")
        (raw / "raw.json").write_text(json.dumps(record))
        between = time.perf_counter()
        encode(raw, out / "encoded", Settings(split={"by": "random", **SHARES}, min_count=MIN_COUNT))
        return {"ingest": between - started, "encode": time.perf_counter() - between}

    return job


def _pandas(file: Path, out: Path) -> Callable[[], dict[str, float]]:
    """The same result with pandas, as one would write it with care: two passes over chunks, whole columns at once.

    Text as pandas 3 keeps it (Arrow strings); ``category`` columns are slower here, and "pyarrow", the faster
    reader, reads no chunks.
    """
    import numpy as np
    import pandas as pd

    from pipeline.encoding.buckets import log_square
    from pipeline.encoding.parts import splitmix64

    def chunks() -> Iterator[tuple[pd.DataFrame, np.ndarray]]:
        types = {"label": "uint8", **dict.fromkeys(NUMBERS, "float64"), **dict.fromkeys(HASHES, "str")}
        read = pd.read_csv(
            file, sep="\t", header=None, names=["label", *NUMBERS, *HASHES], dtype=types, chunksize=CHUNK_ROWS
        )
        first = 0
        for chunk in read:
            numbers = splitmix64(np.arange(first, first + len(chunk)), 0)
            bounds = np.cumsum(list(SHARES.values()))[:-1]
            for name in NUMBERS:
                values = chunk[name].to_numpy()
                missing = np.isnan(values)
                chunk[name] = np.where(missing, np.nan, log_square(np.where(missing, 0, values)))
            yield chunk, np.searchsorted(bounds, (numbers >> np.uint64(11)) * 2.0**-53, side="right")
            first += len(chunk)

    def added(counts: list[pd.Series]) -> pd.Series:
        return pd.concat(counts).groupby(level=0, dropna=False).sum()

    def job() -> dict[str, float]:
        started = time.perf_counter()
        counts: dict[str, list[pd.Series]] = {name: [] for name in (*NUMBERS, *HASHES)}
        sizes = np.zeros(len(SHARES), dtype=int)
        for chunk, part in chunks():
            sizes += np.bincount(part, minlength=len(SHARES))
            train = chunk[part == 0]
            for name, waiting in counts.items():
                waiting.append(train[name].value_counts(dropna=False))
                if len(waiting) > 4:
                    waiting[:] = [added(waiting)]
        known = {}
        for name, waiting in counts.items():
            total = added(waiting)
            frequent = total[total >= MIN_COUNT].sort_index().sort_values(ascending=False, kind="stable")
            known[name] = pd.Index(frequent.index)
        between = time.perf_counter()
        arrays = []
        for number, n in enumerate(sizes):
            ids = np.lib.format.open_memmap(out / f"ids{number}.npy", "w+", np.int32, (int(n), len(known)))
            labels = np.lib.format.open_memmap(out / f"labels{number}.npy", "w+", np.uint8, (int(n),))
            arrays.append((ids, labels))
        ends = np.zeros(len(SHARES), dtype=int)
        for chunk, part in chunks():
            block = np.empty((len(chunk), len(known)), dtype=np.int32)
            for slot, (name, index) in enumerate(known.items()):
                block[:, slot] = index.get_indexer(chunk[name]) + 1
            for number, (ids, labels) in enumerate(arrays):
                chosen = np.flatnonzero(part == number)
                place = slice(ends[number], ends[number] + len(chosen))
                ids[place], labels[place] = block[chosen], chunk["label"].to_numpy()[chosen]
                ends[number] += len(chosen)
        for ids, labels in arrays:
            ids.flush(), labels.flush()
        return {"counting": between - started, "writing": time.perf_counter() - between}

    return job


def _fuxictr(file: Path, out: Path) -> Callable[[], dict[str, float]]:
    """FuxiCTR's own preprocessing with its settings for Criteo; it wants a header line, and a file for each part.

    The file is cut into parts of the same shares before the clock starts.
    """
    import gzip

    from fuxictr.datasets.criteo import CustomizedFeatureProcessor
    from fuxictr.preprocess import build_dataset

    with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as stream:
        lines = stream.readlines()
    header = ("\t".join(["label", *NUMBERS, *HASHES]) + "\n").encode()
    first, last = round(len(lines) * 0.7), round(len(lines) * 0.8)
    bounds = {"train": (0, first), "valid": (first, last), "test": (last, len(lines))}
    for part, (start, stop) in bounds.items():
        (out / f"{part}.csv").write_bytes(header + b"".join(lines[start:stop]))
    del lines

    columns = [
        {"name": NUMBERS, "active": True, "dtype": "float", "type": "categorical", "preprocess": "convert_to_bucket"},
        {"name": HASHES, "active": True, "dtype": "str", "type": "categorical"},
    ]

    def job() -> dict[str, float]:
        label = {"name": "label", "dtype": "float"}
        encoder = CustomizedFeatureProcessor(columns, label, dataset_id="criteo", data_root=str(out))
        paths = {f"{part}_data": str(out / f"{part}.csv") for part in bounds}
        build_dataset(encoder, **paths, sep="\t", min_categr_count=MIN_COUNT)
        return {}

    return job


def _all_rss_mib(stop: Any, found: list[float]) -> None:
    """The most that the process and those it started had in memory together, shared pages counted once."""
    import psutil

    me = psutil.Process()
    while not stop.wait(0.1):
        total = 0
        for process in [me, *me.children(recursive=True)]:
            try:
                total += process.memory_full_info().pss
            except psutil.Error:
                continue
        found[0] = max(found[0], total / 2**20)


def _one(name: str, file: Path, out: Path) -> None:
    """Do one job and print its record."""
    import threading

    job = {"scan": _scan, "product": _product, "pandas": _pandas, "fuxictr": _fuxictr}[name](file, out)
    stop, together = threading.Event(), [0.0]
    if name == "fuxictr":  # works in several processes
        threading.Thread(target=_all_rss_mib, args=(stop, together), daemon=True).start()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far was that of the preparation
    started, cpu = time.perf_counter(), time.process_time()
    parts = job()
    seconds = time.perf_counter() - started
    stop.set()
    cores = (time.process_time() - cpu) / seconds
    peak = max(together[0], _peak_rss_mib())
    print(json.dumps({"seconds": seconds, "cores": cores, "parts": parts, "peak_rss_mib": peak}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[500_000, 2_000_000])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--gz", action="store_true")
    parser.add_argument("--fuxictr", action="store_true", help="FuxiCTR takes part; it wants the extra `bench`")
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    parser.add_argument("--job", nargs=3, metavar=("NAME", "FILE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        _one(options.job[0], Path(options.job[1]), Path(options.job[2]))
        return
    record = measure(options.rows, options.rounds, options.gz, options.fuxictr)
    print(json.dumps(record) if options.json else table(record))


if __name__ == "__main__":
    main()
