"""Time and memory of the recommenders for retrieval, beside RecBole and implicit; one thread for all.

1. Epochs of LightGCN (three layers) and matrix factorisation, D = 64, on the training rows of benchmarks of
   interactions. RecBole trains with BPR and one negative for each row, so the project's models are shown with that
   loss, too, besides the softmax over all items. An epoch is the library's own loop with its own batches, without
   validation. Every model has a process of its own, and the processes take turns.
2. Three propagations, forward and backward, by the project and by `torch.sparse.mm`, the product of LightGCN's code.
3. Ranking all items of Gowalla for all its users, and an epoch of LightGCN with the softmax over all its items.

    python -m benchmarks.retrieval --data ../data --rivals ../rivals/bin/python --out benchmarks/results

``--data`` is a folder with one folder for each benchmark (`DATA`); one that is not there is left out. ``--rivals`` is
the Python of a virtual environment with the other libraries, which need older packages; `benchmarks.rivals.HOW` makes
it, and without it the project's figures stand alone.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import __main__ as runner
from benchmarks import timing
from benchmarks.alone import ROOT, ProcessFailed, alone
from benchmarks.recommenders import BPR, DIM, LAYERS, OWN, SOFTMAX, encode_to, epoch, pairs, propagation, ranking
from benchmarks.rivals import HOW
from pipeline.sources.source import NotFound
from pipeline.workflow.outputs import write_json, write_text

ML1M, LASTFM, GOWALLA = "ml-1m-ultragcn", "lastfm-lightgcn", "gowalla"
DATA = {LASTFM: "LastFM", ML1M: "MovieLens-1M", GOWALLA: "Gowalla"}  # folder -> name
BATCHES = {LASTFM: 2048, ML1M: 32_768}  # rows of a batch; LightGCN propagates once in each
LARGE = 32_768  # for Gowalla
ROUNDS = {LASTFM: 5, ML1M: 3}
MODELS = {"LightGCN": "lightgcn", "MF": "mf"}
RIVALS = {"LightGCN": ("recbole LightGCN",), "MF": ("recbole BPR", "implicit BPR", "implicit ALS")}
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
MOST_SECONDS, MOST_MIB = 60, 6 * 1024  # of ranking Gowalla, and of its memory


class Contestant:
    """A process that trains one epoch at each turn.

    Args:
        name: for messages.
        command: of the process; it says a JSON value when it is ready, and one after each epoch.

    Raises:
        ProcessFailed: if it ends before it is ready.
    """

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name = name
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by `close`)
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )
        try:
            self.said: Any = self._heard()
        except ProcessFailed:
            self.close()
            raise

    def turn(self) -> dict[str, float]:
        """What it says of an epoch.

        Raises:
            ProcessFailed: if it ends instead.
        """
        assert self._process.stdin is not None
        print(file=self._process.stdin, flush=True)
        return self._heard()  # type: ignore[no-any-return]

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            stream.close()

    def _heard(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            raise ProcessFailed(self.name, self._errors.read())
        return json.loads(line)


def run(data: Path, rivals: str | None, rounds: Mapping[str, int] = ROUNDS) -> dict[str, Any]:
    """Measure all that is there.

    Args:
        data: folder of the data sets' folders.
        rivals: Python of the other libraries; None: they are left out.
        rounds: of the epochs, by data set.

    Returns:
        ``epochs``: by data set, see `race`. ``propagation``: likewise, see `benchmarks.recommenders.propagation`.
        ``ranking``, ``epoch``: of Gowalla. ``left out``: lines that say what was not measured and why. ``versions`` of
        the other libraries. ``targets``.
    """
    os.environ.update(dict.fromkeys(THREADS, "1"))
    found: dict[str, Any] = {"epochs": {}, "propagation": {}, "ranking": None, "epoch": None, "versions": {}}
    found["left out"] = [] if rivals else [f"RecBole and implicit: --rivals names no Python that has them; {HOW}"]
    with tempfile.TemporaryDirectory() as name:
        for folder, title in DATA.items():
            print(f"retrieval: {title}", file=sys.stderr, flush=True)
            try:
                encode_to(Path(name) / folder, str(data.absolute() / folder))
            except NotFound as error:
                found["left out"].append(f"{title}: {error}; --data names the folder above it")
                continue
            encoded = str(Path(name) / folder / "encoded")
            found["propagation"][title] = alone(propagation, encoded, 3 if folder == GOWALLA else 10)
            if folder == GOWALLA:
                found["ranking"] = alone(ranking, encoded)
                found["epoch"] = alone(epoch, encoded, "lightgcn", SOFTMAX, LARGE)
            else:
                found["epochs"][title] = race(encoded, BATCHES[folder], rounds[folder], rivals, found)
    return found | {"targets": targets(found)}


def race(encoded: str, batch_size: int, rounds: int, rivals: str | None, found: dict[str, Any]) -> list[dict[str, Any]]:
    """Epochs of all models on one data set.

    Args:
        encoded: folder of the data.
        batch_size: rows of a batch.
        rounds: turns of each model.
        rivals: see `run`.
        found: gets lines ``left out`` and ``versions``.

    Returns:
        For each ``model``, ``library`` and ``loss`` the ``seconds``, ``cpu_seconds`` of all rounds, ``peak_mib``, and
        ``ratio``: the median over the rounds of its CPU time divided by that of the project's model with BPR.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pairs.npy"
        np.save(file, pairs(encoded))
        entered: dict[tuple[str, str, str], Contestant] = {}
        try:
            for name, model in MODELS.items():
                for loss in (BPR, SOFTMAX):
                    sizes = (model, loss, encoded, str(batch_size), str(rounds))
                    command = [sys.executable, "-m", "benchmarks.recommenders", *sizes]
                    entered[name, OWN, loss] = Contestant(f"{name}, {loss}", command)
                for rival in RIVALS[name] if rivals else ():
                    sizes = (rival, str(file), str(batch_size), str(DIM), str(LAYERS))
                    command = [str(rivals), "-W", "ignore", "-P", str(ROOT / "benchmarks/rivals.py"), *sizes]
                    try:
                        entry = Contestant(rival, command)
                    except (ProcessFailed, OSError) as error:
                        found["left out"].append(f"{rival}: {getattr(error, 'reason', error)}; {HOW}")
                        continue
                    found["versions"] |= entry.said["versions"]
                    entered[name, rival.split()[0], "ALS" if "ALS" in rival else BPR] = entry
            turns = [{key: entry.turn() for key, entry in entered.items()} for _ in range(rounds)]
        finally:
            for entry in entered.values():
                entry.close()
    return [_entry(key, turns) | {"batch": batch_size} for key in entered]


def _entry(key: tuple[str, str, str], turns: Sequence[Mapping[tuple[str, str, str], dict[str, float]]]) -> Any:
    (model, library, loss), mine = key, [turn[key] for turn in turns]
    reference = [turn[model, OWN, BPR]["cpu_seconds"] for turn in turns]
    return {
        "model": model,
        "library": library,
        "loss": loss,
        **{name: [turn[name] for turn in mine] for name in ("seconds", "cpu_seconds")},
        "peak_mib": max(turn["peak_mib"] for turn in mine),
        "ratio": statistics.median(turn["cpu_seconds"] / of for turn, of in zip(mine, reference, strict=True)),
    }


def targets(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    ranked, trained = found["ranking"] or {}, found["epoch"] or {}
    return [
        timing.target("ranking all of Gowalla, seconds", ranked.get("seconds"), at_most=MOST_SECONDS),
        timing.target("ranking all of Gowalla, peak MiB", ranked.get("peak_mib"), at_most=MOST_MIB),
        timing.target(
            "an epoch on Gowalla, softmax over all items, peak MiB", trained.get("peak_mib"), at_most=MOST_MIB
        ),
    ]


def table(results: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in sorted(results["versions"].items()))
    parts = [
        "## Retrieval",
        f"One thread for all; D = {DIM}, LightGCN with {LAYERS} layers. An epoch has the training rows, without "
        "validation. The models take turns, each in a process of its own. Ratios are those of CPU time, the median "
        "over the rounds, to this project's model with BPR and one negative for each row, which is the loss of RecBole "
        f"and of implicit's BPR. {f'The other environment has {versions}.' if versions else ''}".strip(),
    ]
    head = (
        "model",
        "library",
        "loss",
        "batch",
        "least s",
        "median s",
        "median CPU s",
        "CPU time / own BPR",
        "peak MiB",
    )
    for title, entries in results["epochs"].items():
        rows = [
            (
                *(entry["model"], entry["library"], entry["loss"]),
                *("" if entry["library"] == "implicit" else str(entry["batch"]), min(entry["seconds"])),
                *(statistics.median(entry["seconds"]), statistics.median(entry["cpu_seconds"])),
                *(entry["ratio"], entry["peak_mib"]),
            )
            for entry in entries
        ]
        parts += [f"### Epochs on {title}, {len(entries[0]['seconds'])} rounds", timing.markdown(head, rows)]
    rows = [
        (title, name, entry["least"], entry["median"], entry["ratio"])
        for title, entries in results["propagation"].items()
        for name, entry in entries.items()
    ]
    if rows:
        head = ("data", "product", "least ms", "median ms", "time / own")
        parts += [f"### {LAYERS} propagations, forward and backward", timing.markdown(head, rows)]
    large = {"ranking all items for all users": results["ranking"], "an epoch, softmax over all": results["epoch"]}
    rows = [(what, e["seconds"], e["cpu_seconds"], e["peak_mib"]) for what, e in large.items() if e]
    if rows:
        parts += ["### LightGCN on Gowalla, once", timing.markdown(("what", "s", "CPU s", "peak MiB"), rows)]
    return "\n\n".join([*parts, *(f"Left out: {line}" for line in results["left out"])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../data"), help=f"folder of {', '.join(DATA)}")
    parser.add_argument("--rivals", help="the Python of an environment with RecBole and implicit")
    parser.add_argument("--quick", action="store_true", help="one round of each epoch")
    parser.add_argument("--out", type=Path, help="folder of the results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = run(options.data, options.rivals, dict.fromkeys(ROUNDS, 1) if options.quick else ROUNDS)
    record = {"about": runner.machine(), "sections": {"retrieval": results}}
    file = None if options.out is None else options.out / f"{record['about']['date']}-retrieval.json"
    if file:
        write_json(file, record)
    text = "\n\n".join([runner.about(record["about"]), runner.targets(record), table(results)])
    print(text)
    if file:
        write_text(file.with_suffix(".md"), text + "\n")


if __name__ == "__main__":
    main()
