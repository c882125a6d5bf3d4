"""All benchmarks in one run: a Markdown table and JSON in benchmarks/results/, named by the date.

python -m benchmarks                          # about half an hour on two cores; `make bench` does this
python -m benchmarks --quick                  # fewer rounds and shapes, a few minutes
python -m benchmarks --only search serving
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import peers

SECTIONS = ("training", "search", "gpu", "scaling", "limits", "serving", "encode", "methods")
WITH_PEERS = {"training", "search", "encode"}
RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and shapes; written nowhere unless --out")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, metavar="SECTION", help=str(SECTIONS))
    parser.add_argument("--out", type=Path, help="folder of the results")
    options = parser.parse_args()
    missing = peers.missing()
    if missing and WITH_PEERS & set(options.only):
        sys.exit(f"benchmarks: {', '.join(missing)} not installed; `make bench`, or pip install -e '.[bench]' first")
    from stages import _model

    _model.tune()
    whole = not options.quick and set(options.only) == set(SECTIONS)
    out = options.out or (RESULTS if whole else None)
    about = machine()
    record: dict[str, Any] = {"about": about, "sections": {}}
    print(_about(about), flush=True)
    began = time.monotonic()
    for name in (section for section in SECTIONS if section in options.only):
        module = importlib.import_module(f"benchmarks.{name}")
        started = time.monotonic()
        results = module.run(options.quick)
        record["sections"][name] = results | {"seconds": time.monotonic() - started}
        print(f"\n{module.table(results)}", flush=True)
        if out:
            _write(record, out)
    print(f"\n{targets(record)}")
    where = f"; written to {out}" if out else ""
    print(f"\nbenchmarks: {time.monotonic() - began:.0f} s{where}")


def machine() -> dict[str, Any]:
    """What the figures were measured on and with; no name of the machine."""
    import psutil
    import torch

    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    packages = ("torch", "pytorch-lightning", "numpy", "pandas", "pyarrow", *peers.MODULES)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "date": datetime.date.today().isoformat(),
        "commit": _git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"),
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory GiB": round(psutil.virtual_memory().total / 2**30),
        "gpu": gpu,
        "load at the start": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in packages},
    }


def targets(record: dict[str, Any]) -> str:
    """What was to be reached, and was or was not, of all sections."""
    from benchmarks import timing

    rows = []
    for results in record["sections"].values():
        for entry in results["targets"]:
            signs = (("at_least", "≥"), ("at_most", "≤"))
            wanted = [f"{sign} {entry[key]:g}" for key, sign in signs if entry[key] is not None]
            reached = "not measured" if entry["reached"] is None else f"{entry['reached']:.3g}"
            met = {True: "yes", False: "**no**", None: ""}[entry["met"]]
            rows.append((entry["what"], reached, ", ".join(wanted), met))
    return "## Targets\n\n" + timing.markdown(("what", "reached", "wanted", "met"), rows)


def _about(about: dict[str, Any]) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in about["packages"].items() if version)
    gpu = about["gpu"] or "no GPU: nothing was measured on one"
    return (
        f"# Benchmarks, {about['date']}\n\nCommit {about['commit']}, {about['cpu']}, {about['cores']} cores, "
        f"{about['threads']} threads, {about['memory GiB']} GiB, {gpu}. Python {about['python']}, {packages}. "
        f"Load {about['load at the start']} at the start.\n\nSteps that are compared take turns in one process. Times "
        f"are medians, with quartiles; a ratio is the median of the ratios within a round, and what counts."
    )


def _write(record: dict[str, Any], out: Path) -> None:
    """Both files, after each section, so that a run that is stopped keeps what it has."""
    out.mkdir(parents=True, exist_ok=True)
    tables = [
        importlib.import_module(f"benchmarks.{name}").table(results) for name, results in record["sections"].items()
    ]
    text = "\n\n".join([_about(record["about"]), targets(record), *tables]) + "\n"
    for suffix, content in ((".json", json.dumps(record, indent=1) + "\n"), (".md", text)):
        draft = out / f".{record['about']['date']}{suffix}"
        draft.write_text(content)
        draft.replace(out / f"{record['about']['date']}{suffix}")


def _git(*command: str) -> str:
    try:
        done = subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:  # there is no git
        return "unknown"
    return done.stdout.strip() or "unknown"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
