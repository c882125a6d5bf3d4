"""All benchmarks in one run. Tables (Markdown) and results (JSON) go to benchmarks/results/, named by the date.

python -m benchmarks                            # about half an hour on two cores; `make bench` does this
python -m benchmarks --quick                    # fewer rounds and shapes, a few minutes
python -m benchmarks --only search,serving      # or: --only search serving
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks import coding, encode, gpu, limits, methods, peers, scaling, search, serving, timing, training
from benchmarks.alone import ROOT
from pipeline.workflow.outputs import write_json, write_text
from pipeline.workflow.process import cores
from pipeline.workflow.validation import suggestion

SECTIONS: dict[str, Any] = {  # name -> module with run(quick) -> results, and table(results) -> Markdown
    "training": training,
    "search": search,
    "gpu": gpu,
    "scaling": scaling,
    "limits": limits,
    "coding": coding,
    "serving": serving,
    "encode": encode,
    "methods": methods,
}
WITH_PEERS = {"training", "encode"}  # sections that need the other libraries
RESULTS = ROOT / "benchmarks/results"
SIGNS = (("at_least", "≥"), ("at_most", "≤"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and shapes; writes no files without --out")
    parser.add_argument("--only", nargs="+", default=list(SECTIONS), metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--out", type=Path, help="folder of the results")
    options = parser.parse_args()
    chosen = sections(options.only)
    missing = peers.missing()
    if missing and WITH_PEERS & set(chosen):
        sys.exit(
            f"benchmarks: {', '.join(missing)} not installed; `make bench` or pip install -e '.[bench]' installs it"
        )
    whole = not options.quick and len(chosen) == len(SECTIONS)
    out = options.out or (RESULTS if whole else None)
    record: dict[str, Any] = {"about": machine(), "sections": {}}
    print(about(record["about"]), flush=True)
    began = time.monotonic()
    for name in chosen:
        started = time.monotonic()
        results = SECTIONS[name].run(options.quick)
        record["sections"][name] = results | {"seconds": time.monotonic() - started}
        print(f"\n{SECTIONS[name].table(results)}", flush=True)
        if out:
            write(record, out)
    if any(results["targets"] for results in record["sections"].values()):
        print(f"\n{targets(record)}")
    where = f"; written to {out}" if out else ""
    print(f"\nbenchmarks: {time.monotonic() - began:.0f} s{where}")


def sections(words: Sequence[str]) -> list[str]:
    """The names of sections in the words, separated by spaces or commas, in the order of `SECTIONS`."""
    names = [name for word in words for name in word.replace(",", " ").split()]
    for name in names:
        if name not in SECTIONS:
            near = suggestion(name, SECTIONS)
            sys.exit(f"benchmarks: there is no section {name!r}{near}; there are {', '.join(SECTIONS)}")
    return [name for name in SECTIONS if name in names]


def machine() -> dict[str, Any]:
    """The hardware and the software of the measurements, without the name of the machine."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    packages = ("torch", "pytorch-lightning", "numpy", "pandas", "pyarrow", *(peer.name for peer in peers.PEERS))
    return {
        "date": datetime.date.today().isoformat(),
        "commit": _git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"),
        "cpu": cpu,
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "memory GiB": round(psutil.virtual_memory().total / 2**30),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load at the start": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in packages},
    }


def about(machine: Mapping[str, Any]) -> str:
    """The head of the report."""
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items() if version)
    gpu = machine["gpu"] or "no GPU"
    return (
        f"# Benchmarks, {machine['date']}\n\nCommit {machine['commit']}, {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['threads']} threads, {machine['memory GiB']} GiB, {gpu}. Python {machine['python']}, {packages}. "
        f"Load {machine['load at the start']} at the start.\n\nSteps that are compared take turns in one process. "
        "Times are medians, with quartiles. A ratio is the median of the ratios within each round; compare these."
    )


def targets(record: Mapping[str, Any]) -> str:
    """A table of the targets of all sections, and whether they were reached."""
    rows = []
    for results in record["sections"].values():
        for entry in results["targets"]:
            wanted = [f"{sign} {entry[key]:g}" for key, sign in SIGNS if entry[key] is not None]
            reached = "not measured" if entry["reached"] is None else f"{entry['reached']:.3g}"
            met = {True: "yes", False: "**no**", None: ""}[entry["met"]]
            rows.append((entry["what"], reached, ", ".join(wanted), met))
    return "## Targets\n\n" + timing.markdown(("what", "reached", "target", "met"), rows)


def write(record: Mapping[str, Any], out: Path) -> None:
    """Write both files. It is called after each section, so an interrupted run keeps its finished sections."""
    tables = [SECTIONS[name].table(results) for name, results in record["sections"].items()]
    file = out / f"{record['about']['date']}.json"
    write_json(file, record)
    write_text(file.with_suffix(".md"), "\n\n".join([about(record["about"]), targets(record), *tables]) + "\n")


def _git(*command: str) -> str:
    try:
        done = subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:  # git is not installed
        return "unknown"
    return done.stdout.strip() or "unknown"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
