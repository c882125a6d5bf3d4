"""What each method's search and retraining cost at Criteo's shape, beside the plain model: time and memory.

Every method of `pipeline.methods` goes through its stages in a process of its own, with the defaults of its options
and a quarter of the full tables' bytes: it finds what it derives from, derives, is trained a few steps and finished.
Then its steps take turns with the plain model's. The plain model is the method ``full``.

    python -m benchmarks.methods                # a tenth of the values, a few rounds
    python -m benchmarks.methods --full-size
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import models, shapes, timing
from pipeline.allocation.allocation import Allocation
from pipeline.data.schema import Schema
from pipeline.training.loop import fit
from pipeline.workflow.plug import names
from stages import _model, derive, retrain, search

PARTS = {"train": 8, "arch": 2, "val": 1}  # batches of each part
BUDGET = 0.25
PLAIN, RETRAINING, SEARCH, ARCHITECTURE = "plain", "retraining", "search", "architecture"
NEVER = 1e9  # seconds between checkpoints
PLANNED = 10_000  # steps of a run whose steps are timed
LIMIT = 8  # GiB


def run(quick: bool) -> dict[str, Any]:
    _model.tune()
    schema = shapes.criteo(100_000) if quick else shapes.criteo()
    with tempfile.TemporaryDirectory() as name:
        shape = write(schema, models.BATCH, Path(name))
        return results(shape, {method: _alone(method, Path(name), 8 if quick else 24) for method in methods()})


def methods() -> list[str]:
    """All but the plain one, which each of them stands beside."""
    return [name for name in names("methods") if name != "full"]


def write(schema: Schema, batch_size: int, folder: Path) -> str:
    """Encoded data of a shape; says what they are."""
    drawn = shapes.batches(schema, batch_size, sum(PARTS.values()))
    waiting = iter(drawn)
    for part, number in PARTS.items():
        rows = models.split([next(waiting) for _ in range(number)])
        (folder / part).mkdir()
        np.save(folder / part / "ids.npy", np.concatenate(rows.ids))
        np.save(folder / part / "labels.npy", rows.all_labels())
    (folder / "schema.json").write_text(json.dumps(schema.to_dict()))
    return shapes.describe(schema, drawn, models.DIM)


def parameters(name: str, batch_size: int, epochs: int) -> dict[str, Any]:
    """As of params.yaml, every option at its default."""
    training = {"batch_size": batch_size, "epochs": epochs, "lr": 0.001, "weight_decay": 0.0}
    training |= {"seed": 0, "patience": None, "checkpoint_seconds": NEVER}
    return {
        "dim": models.DIM,
        "candidates": {"paper": list(models.CANDIDATES)},
        "method": {"name": name, "options": {}},
        "backbone": {"name": "deepfm", "options": {}},
        "search": training | {"candidates": "paper", "architecture": {}},
        "retrain": training,
    }


def measure(name: str, encoded: Path, rounds: int, batch_size: int = models.BATCH) -> dict[str, Any]:
    """One method, in this process: its stages once, with their peak memory, and then its steps in turns."""
    _model.tune()
    schema = Schema.load(encoded / "schema.json")
    once = parameters(name, batch_size, 1)
    before = _peak_mib()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        began = time.monotonic()
        record = search.find(once, schema, work, lambda *_: None, encoded).record
        finding, finding_peak = time.monotonic() - began, max(before, _peak_mib())  # the counter lags by some pages
        allocation, size = derive.decide(once, given := derive.evidence(record, schema, BUDGET))
        full = given.full_bytes
        del record, given
        gc.collect()
        module, batches = retrain.prepare(once, schema, allocation, 0, *retrain.parts(encoded))
        fit(module, batches, 1, name, work / "none.ckpt", NEVER)
        module.model.load_state_dict(module.best)
        began = time.monotonic()
        module.model.embedding.finish()
        finishing = time.monotonic() - began
    peak = max(finding_peak, _peak_mib())
    del module, batches
    gc.collect()
    finds = _model.method(once).finds
    return {
        "finds by": None if finds is None else finds.__name__,
        "bytes": size,
        "of full": size / full,
        "finding, s": finding,
        "finishing, s": finishing,
        "MiB": {"before": before, "finding": finding_peak, "all": peak},
        "steps": _steps(name, schema, allocation, encoded, rounds, batch_size),
    }


def _steps(
    name: str, schema: Schema, allocation: Allocation, encoded: Path, rounds: int, batch_size: int
) -> dict[str, dict[str, float]]:
    """The steps of a run that is three quarters through: no warm-up, and nothing to wait for."""
    params = parameters(name, batch_size, PLANNED // PARTS["train"])
    plain = Allocation("full", dict.fromkeys(schema.names, models.DIM))
    training, validation = retrain.parts(encoded)
    drawn = list(retrain.prepare(params, schema, plain, 0, training, validation)[1])
    modules = {
        PLAIN: retrain.prepare(params, schema, plain, 0, training, validation)[0],
        RETRAINING: retrain.prepare(params, schema, allocation, 0, training, validation)[0],
    }
    finds = _model.method(params).finds
    if finds is not None and finds.__name__ == "search":
        modules[SEARCH] = search.prepare(params, schema, encoded)[0]
    turns: dict[str, Callable[[int], Any]] = {}
    for kind, module in modules.items():
        module.steps, optimizers = module.planned * 3 // 4, module.configure_optimizers()
        turns[kind] = lambda i, m=module, o=optimizers: m.weight_step(drawn[i % len(drawn)], o)
    searched = modules.get(SEARCH)
    apart = searched is not None and searched.architecture.level == "bilevel"  # else it is trained with the weights
    if apart and searched.model.embedding.arch_parameters():
        turns[ARCHITECTURE] = lambda i: searched.arch_step(drawn[i % len(drawn)])
    taken = timing.interleave(turns, rounds)
    if ARCHITECTURE in taken:
        taken[SEARCH] = taken[SEARCH] + taken.pop(ARCHITECTURE) / modules[SEARCH].architecture.every
    return timing.summary(taken, PLAIN)


def _peak_mib() -> float:
    """Of this process, until now: what Linux calls VmHWM."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def _alone(name: str, encoded: Path, rounds: int) -> dict[str, Any]:
    """`measure` in a process of its own; of one that fails, why."""
    command = [sys.executable, "-m", "benchmarks.methods", "--method", name, "--encoded", str(encoded)]
    command += ["--rounds", str(rounds)]
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
    print(f"methods: {name}, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
        return {"failed": last}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def results(shape: str, measured: dict[str, dict[str, Any]]) -> dict[str, Any]:
    ran = {name: entry for name, entry in measured.items() if "failed" not in entry}
    most = max(ran, key=lambda name: ran[name]["MiB"]["all"], default=None)
    reached = None if most is None else ran[most]["MiB"]["all"] / 1024
    return {
        "shape": shape,
        "methods": measured,
        "targets": [
            timing.target("methods that run, share", len(ran) / len(measured), at_least=1),
            timing.target(f"peak memory of a method, GiB, the most ({most})", reached, at_most=LIMIT),
        ],
    }


def table(results: dict[str, Any]) -> str:
    rows, failed = [], []
    for name, entry in results["methods"].items():
        if "failed" in entry:
            failed.append(f"Failed: {name}: {entry['failed']}")
            continue
        steps, memory = entry["steps"], entry["MiB"]
        found, again = steps.get(SEARCH, {}), steps[RETRAINING]
        rows.append(
            (
                name,
                entry["finds by"] or "",
                *(found.get("median"), found.get("ratio")),
                *(again["median"], again["ratio"], steps[PLAIN]["median"]),
                *(round(entry[key], 3) for key in ("finding, s", "finishing, s")),
                *(memory["finding"] / 1024, memory["all"] / 1024),
                entry["of full"],
            )
        )
    head = (
        *("method", "finds by", "search, ms a step", "x plain", "retraining, ms a step", "x plain", "plain, ms"),
        *("finding, s", "finishing, s", "peak GiB, finding", "peak GiB, all", "of full"),
    )
    return "\n\n".join(
        [
            "## Methods",
            f"{results['shape']} DeepFM, {BUDGET:.0%} of the full tables' bytes, a process for each method, in which "
            "its steps take turns with the plain model's. A step of the search has its share of the architecture's. "
            f"Finding takes {PARTS['train']} steps and all that the search does besides; memory is that of the whole "
            "process, with the interpreter, torch and the data.",
            timing.markdown(head, rows),
            *failed,
        ]
    )


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full-size", action="store_true", help="Criteo's 1.09 M values, and more rounds")
    alone = parser.add_argument_group("one method, in this process, as JSON")
    alone.add_argument("--method", choices=methods())
    alone.add_argument("--encoded", type=Path, help="folder of `write`")
    alone.add_argument("--rounds", type=int, default=8)
    options = parser.parse_args(None if arguments is None else list(arguments))
    if options.method is None:
        print(table(run(quick=not options.full_size)))
    else:
        print(json.dumps(measure(options.method, options.encoded, options.rounds)))


if __name__ == "__main__":
    main()
