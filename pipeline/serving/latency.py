"""Latency and memory of served models, measured in a process of their own.

One process measures all models. It times them in turns, so that other load on the machine slows all of them alike. It
serves every model once before it measures memory, because the first prediction in a process loads libraries and
allocates more than 10 MB of threads and buffers. With a process per model, these would count for every model.
"""

from __future__ import annotations

import ctypes
import gc
import json
import logging
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from pipeline.embeddings.coded import CodedTables
from pipeline.models.model import Model
from pipeline.models.retriever import AnyModel
from pipeline.serving.served import Served

BATCHES = (1, 2000)
REPEATS = 30

log = logging.getLogger("pipeline.serving")


def forms(model: AnyModel) -> dict[str, Served]:
    """The served forms of a trained model: ``float32`` and ``int8`` of plain tables, ``coded`` of coded ones, and none
    of an embedding that cannot be served. A warning says where weights are too large for ``int8``."""
    if not isinstance(model, Model):  # a retriever
        return {}
    try:
        if isinstance(model.embedding, CodedTables):
            return {"coded": Served.of(model)}
        served = {"float32": Served.of(model)}
        try:
            served["int8"] = Served.of(model, int8=True)
        except ValueError as error:
            log.warning("warning: a model has no form in int8: %s", error)
        return served
    except TypeError:
        return {}


def measured(files: Mapping[str, Path], ids: np.ndarray, folder: Path) -> dict[str, Any]:
    """Latency and memory of served models, by name.

    Args:
        files: by name, each written by `Served.save`.
        ids: (n, S) rows to predict; batches repeat them if there are too few.
        folder: where the ids are written for the measuring process.

    Returns:
        For each name:

        * ``latency_ms``: by batch size, the ``median`` and the ``quartiles`` of `REPEATS` predictions after a warm-up,
          in milliseconds.
        * ``resident_bytes``: the growth of the resident memory (RSS) while a process that has already served the model
          loads one more copy, reads all its tensors and predicts a batch of each size. Mapped pages of the file count,
          4 KiB each; memory that a prediction frees does not.

    Raises:
        subprocess.CalledProcessError: if the measuring process fails.
    """
    if not files:
        return {}
    rows = folder / "ids.npy"
    np.save(rows, ids[: max(BATCHES)])
    command = [sys.executable, "-m", __name__, str(rows), *map(str, files.values())]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return dict(zip(files, json.loads(done.stdout.splitlines()[-1]), strict=True))


def main(rows: str, files: Sequence[str]) -> None:
    """Measure the models in ``files`` on the ids in the file ``rows``, and print the results as one line of JSON."""
    ids = np.load(rows)
    batches = [torch.from_numpy(ids[np.arange(size) % len(ids)]) for size in BATCHES]
    models = [Served.load(file) for file in files]
    low, middle, high = _latencies(models, batches)
    sizes = _sizes(files, batches, models)
    results = [
        {
            "latency_ms": {
                str(size): {"median": middle[b, m], "quartiles": [low[b, m], high[b, m]]}
                for b, size in enumerate(BATCHES)
            },
            "resident_bytes": sizes[m],
        }
        for m in range(len(files))
    ]
    print(json.dumps(results))


def _latencies(models: Sequence[Served], batches: Sequence[torch.Tensor]) -> np.ndarray:
    """(3, batches, models) quartiles of the latency, in milliseconds."""
    times = np.empty((REPEATS + 1, len(batches), len(models)))
    for b, ids in enumerate(batches):
        for repeat in times[:, b]:
            for m, model in enumerate(models):
                started = time.perf_counter()
                model(ids)
                repeat[m] = time.perf_counter() - started
    quartiles: np.ndarray = np.percentile(times[1:] * 1000, (25, 50, 75), axis=0)  # the first repeat warms up
    return quartiles


def _sizes(files: Sequence[str], batches: Sequence[torch.Tensor], models: list[Served]) -> list[int]:
    """Bytes that one more copy of each model adds to this process; the copies are appended to ``models``."""
    gc.collect()
    sizes = []
    for file in files:
        before = _resident()
        model = Served.load(file)
        for tensor in (*model.packed().values(), *model.state_dict().values()):
            tensor.sum()
        for ids in batches:
            model(ids)
        sizes.append(_resident() - before)
        models.append(model)  # not freed, so the next model cannot reuse its memory
    return sizes


def _resident() -> int:
    """Resident bytes of this process after freed memory is returned to the system."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    rss: int = psutil.Process().memory_info().rss
    return rss


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
