"""Epochs of recommenders of other libraries: RecBole's LightGCN and BPR, implicit's BPR and ALS.

These libraries need older numpy and pandas than this project, so they stand in a virtual environment of their own
(`HOW`), and this file is also a program of that environment: it imports nothing of the project. The program loads the
interactions, says that it is ready, and then trains one epoch for each line on its standard input:

    python -P benchmarks/rivals.py NAME interactions.npy BATCH_SIZE DIM LAYERS
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HOW = (
    "python -m venv ../rivals && ../rivals/bin/pip install torch==2.13.0 recbole==1.2.1 implicit==0.7.3 'numpy<2' "
    "'scipy<1.12' 'pandas<2.3' 'setuptools<81'"
)
EPOCHS = 3  # that a turn of implicit trains, because each call of its fit copies the matrix
Epoch = Callable[[], None]


class Turns:
    """The worker's end of a contest: one JSON value a line to the standard output, to which nothing else is written."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def wait(self, said: Any) -> bool:
        """Say something, and wait for the next turn; False if there is none."""
        print(json.dumps(said), file=self._out, flush=True)
        return bool(sys.stdin.readline())


class Clock:
    """Times work of this process."""

    def __init__(self) -> None:
        self.began, self.cpu = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        """``seconds`` and ``cpu_seconds`` since the start, and ``peak_mib`` of the process, see
        `benchmarks.alone.peak_mib`."""
        seconds, cpu = time.perf_counter() - self.began, time.process_time() - self.cpu
        peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
        return {"seconds": seconds, "cpu_seconds": cpu, "peak_mib": peak}


def with_recbole(model: str, file: Path, batch_size: int, dim: int, layers: int) -> Epoch:
    """An epoch of RecBole's own trainer. All settings but the sizes are its defaults, so each row has one negative.

    Args:
        model: name of RecBole's class.
        file: of pairs (n, 2) of users and items; RecBole's files are written beside it.
        batch_size, dim, layers: the sizes.
    """
    sys.argv = sys.argv[:1]  # which RecBole reads
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, get_trainer, init_seed

    pairs, folder = np.load(file), Path(tempfile.mkdtemp(dir=file.parent))
    of_data = folder / "pairs"
    of_data.mkdir()
    for part, rows in (("train", pairs), ("valid", pairs[:1]), ("test", pairs[:1])):
        with (of_data / f"pairs.{part}.inter").open("w") as file:
            file.write("user_id:token\titem_id:token\n")
            np.savetxt(file, rows, fmt="%d", delimiter="\t")
    sizes = {"embedding_size": dim, "n_layers": layers, "train_batch_size": batch_size}
    places = {"data_path": str(folder), "checkpoint_dir": str(folder), "use_gpu": False, "state": "ERROR"}
    files = {"benchmark_filename": ["train", "valid", "test"], "load_col": {"inter": ["user_id", "item_id"]}}
    config = Config(model, "pairs", config_dict={**sizes, **places, **files})
    init_seed(config["seed"], config["reproducibility"])
    train, _, _ = data_preparation(config, create_dataset(config))
    if len(train.dataset) != len(pairs):
        raise RuntimeError(f"RecBole trains on {len(train.dataset):,} of {len(pairs):,} pairs")
    trainer = get_trainer(config["MODEL_TYPE"], model)(config, get_model(model)(config, train.dataset))
    return lambda: trainer._train_epoch(train, 0)


def with_implicit(model: str, file: Path, dim: int) -> Epoch:
    """`EPOCHS` epochs of implicit, on one thread; an epoch of ALS solves for all users and all items once."""
    import scipy.sparse as sp
    from implicit.cpu import als, bpr

    made = {"BPR": bpr.BayesianPersonalizedRanking, "ALS": als.AlternatingLeastSquares}[model]
    trained = made(factors=dim, iterations=EPOCHS, num_threads=1, random_state=0)
    pairs = np.load(file)
    matrix = sp.csr_matrix((np.ones(len(pairs), np.float32), pairs.T))
    return lambda: trained.fit(matrix, show_progress=False)


def main() -> None:
    name, file, batch_size, dim, layers = sys.argv[1:]
    library, model = name.split()
    turns = Turns()
    if library == "recbole":
        epoch, number = with_recbole(model, Path(file), int(batch_size), int(dim), int(layers)), 1
    else:
        epoch, number = with_implicit(model, Path(file), int(dim)), EPOCHS
    said: Any = {"versions": {name: importlib.metadata.version(name) for name in (library, "numpy")}}
    while turns.wait(said):
        clock = Clock()
        epoch()
        said = clock.read()
        said |= {name: said[name] / number for name in ("seconds", "cpu_seconds")}


if __name__ == "__main__":
    main()
