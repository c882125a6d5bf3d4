"""Retrained models in the forms they are served in, and a process that says how fast and how large each of them is.

One process measures all files, with nothing but them and rows of ``test``. It starts once, and takes times in turns, so
that what slows the machine down slows all models alike. It has served every model before it measures the memory of any,
for the first prediction of a process brings in libraries, threads and buffers, more than 10 MB: a fresh or forked
process for each file would count them with every model.
"""

from __future__ import annotations

import ctypes
import gc
import json
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import _model
from stages._stage import ENCODED

if TYPE_CHECKING:
    from pipeline.models.model import CTRModel
    from pipeline.serving.packed import Served

BATCHES = (1, 2000)
REPEATS = 30


def forms(model: CTRModel) -> dict[str, Served] | None:
    """A trained model as it is served, by type of number; None if its embedding has no inference form."""
    from pipeline.serving.packed import Served

    try:
        return {"float32": Served.of(model), "int8": Served.of(model, int8=True)}
    except TypeError:
        return None


def measured(files: Mapping[str, Path]) -> dict[str, Any]:
    """Latency and memory of the served models in ``files``, by their names.

    Returns:
        For each name ``latency_ms``, by batch size the ``median`` and ``quartiles`` of `REPEATS` predictions after
        warm-up, in milliseconds; and ``resident_bytes``, what one more copy of the model adds to the resident memory
        (RSS) of a process that has served it before: the growth over loading its file, reading all its tensors and
        predicting a batch of each size. Pages of the file count as they are mapped, 4 KiB each; what predictions
        allocate and give back does not.
    """
    if not files:
        return {}
    command = [sys.executable, "-m", __name__, *map(str, files.values())]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return dict(zip(files, json.loads(done.stdout.splitlines()[-1]), strict=True))


def main(files: list[str]) -> None:
    _model.tune()
    import numpy as np
    import torch

    from pipeline.data.split import Split
    from pipeline.serving.packed import Served

    test = Split.load(ENCODED, "test")
    some = test.slice(0, max(BATCHES))[0]
    batches = [torch.from_numpy(some[np.arange(size) % len(some)]) for size in BATCHES]
    models = [Served.load(file) for file in files]
    times = np.empty((REPEATS + 1, len(BATCHES), len(models)))
    for b, ids in enumerate(batches):
        for repeat in times[:, b]:
            for m, model in enumerate(models):
                started = time.perf_counter()
                model(ids)
                repeat[m] = time.perf_counter() - started
    low, middle, high = np.percentile(times[1:] * 1000, (25, 50, 75), axis=0)  # the first repeat is the warm-up

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
        models.append(model)  # kept, so that nothing is measured as the reuse of another's memory
    found = [
        {
            "latency_ms": {
                str(size): {"median": middle[b, m], "quartiles": [low[b, m], high[b, m]]}
                for b, size in enumerate(BATCHES)
            },
            "resident_bytes": sizes[m],
        }
        for m in range(len(files))
    ]
    print(json.dumps(found))


def _resident() -> int:
    """Bytes of this process in memory, without what is free to be given back."""
    import psutil

    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    rss: int = psutil.Process().memory_info().rss
    return rss


if __name__ == "__main__":
    main(sys.argv[1:])
