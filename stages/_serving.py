"""A process of its own that loads one retrained model and prints, as JSON, how fast and how large it is."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from statistics import median

from pipeline.schema import Schema
from stages import _model, _stage
from stages._stage import ENCODED

REPEATS = 30


def main(folder: str) -> None:
    _model.tune()
    import torch

    from pipeline.data import Split

    params = _stage.params("evaluate")
    model, _ = _model.load(Path(folder), Schema.load(ENCODED / "schema.json"), params)
    model.eval()
    test = Split.load(ENCODED, "test")
    latency = {}
    with torch.inference_mode():
        for batch in (1, 2000):
            ids = torch.from_numpy(test.slice(0, batch)[0])
            times = []
            for _ in range(REPEATS):
                started = time.perf_counter()
                model(ids)
                times.append(time.perf_counter() - started)
            latency[str(batch)] = median(times) * 1000
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak = kilobytes if sys.platform == "darwin" else kilobytes * 1024
    print(json.dumps({"latency_ms": latency, "peak_memory_bytes": peak}))


if __name__ == "__main__":
    main(sys.argv[1])
