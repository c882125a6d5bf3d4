"""Wide and odd tables through all six stages: many fields, a field of many values, few rows, a field of one value.

Each stage runs in a process of its own. A stage that refuses a table says why in one line, and the stages after it do
not run. Time and memory per field should not grow with the number of fields.

    python -m benchmarks.wide                              # 250 to 2,000 fields, a million values, odd tables
    python -m benchmarks.wide --fields 10000 --values 10000000
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from benchmarks import timing
from benchmarks.alone import ROOT, ProcessFailed, alone
from benchmarks.stage import run_stage
from pipeline.workflow.overlay import merged

STAGES = ("check", "ingest", "encode", "search", "derive", "retrain", "evaluate")
DIM = 8


def cases(fields: Sequence[int], values: int) -> dict[str, tuple[int, dict[str, int], dict[str, Any]]]:
    """Name of each case -> rows, values of each field, and parameters that differ."""
    odd = {f"f{n}": 5 for n in range(3)}
    found: dict[str, tuple[int, dict[str, int], dict[str, Any]]] = {
        f"{number:,} fields": (3000, {f"f{n}": 20 for n in range(number)}, {}) for number in fields
    }
    found[f"{values:,} values in a field"] = (values, {"id": values, **odd}, {"encode": {"min_count": 1}})
    found["50 rows"] = (50, odd, {})
    found["a field of one value"] = (3000, {**odd, "same": 1}, {})
    return found


def measure(fields: Sequence[int], values: int) -> list[dict[str, Any]]:
    """The seconds of processors and the peak memory of each stage for each case; or the reason of a stage's refusal."""
    found = []
    for name, (rows, sizes, changes) in cases(fields, values).items():
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), rows, sizes, changes)
            for stage in STAGES:
                print(f"wide: {name}, {stage}", file=sys.stderr, flush=True)
                row: dict[str, Any] = {"case": name, "stage": stage, "fields": len(sizes)}
                try:
                    found.append(row | alone(run_stage, stage, folder))
                except ProcessFailed as error:
                    found.append(row | {"refused": error.reason})
                    break
    return found


def write(folder: Path, rows: int, sizes: Mapping[str, int], changes: Mapping[str, Any]) -> None:
    """A table of random values, whose clicks depend on the first field, and the parameters of its six stages."""
    random = np.random.default_rng(0)
    drawn = {name: random.permutation(rows) % size for name, size in sizes.items()}
    lean = random.normal(size=max(sizes.values()))[next(iter(drawn.values()))]
    clicked = (random.random(rows) < 1 / (1 + np.exp(-lean))).astype(np.int8)
    pq.write_table(pa.table({**drawn, "clicked": clicked}), folder / "clicks.parquet")
    batch = max(100, rows // 50)
    training = {"epochs": 1, "batch_size": min(batch, rows // 10)}
    own = {
        "dataset": {"name": "table", "path": "clicks.parquet"},
        "dim": DIM,
        "search": training,
        "retrain": {**training, "seeds": [0], "workers": 1},
    }
    options = {"label": "clicked", "categorical": list(sizes)}
    params = merged(merged(yaml.safe_load((ROOT / "params.yaml").read_text()), own), changes)
    params["dataset"]["options"] = options
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    for name in ("dvc.yaml", "pipeline", "stages"):
        (folder / name).symlink_to(ROOT / name)


def table(found: Sequence[Mapping[str, Any]]) -> str:
    head = ["case", "stage", "seconds", "processor s", "ms per field", "peak memory, MiB", "refused"]
    rows = [
        [row["case"], row["stage"], "", "", "", "", row["refused"]]
        if "refused" in row
        else [
            *(row["case"], row["stage"], row["seconds"], row["processor"]),
            *(1000 * row["processor"] / row["fields"], row["peak_mib"], ""),
        ]
        for row in found
    ]
    return timing.markdown(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fields", type=int, nargs="+", default=[250, 500, 1000, 2000])
    parser.add_argument("--values", type=int, default=1_000_000)
    options = parser.parse_args()
    print(table(measure(options.fields, options.values)))


if __name__ == "__main__":
    main()
