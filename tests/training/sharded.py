"""What each of two processes with divided tables does, for test_sharded.py."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from pipeline.allocation.allocation import Allocation
from pipeline.backbones import deepfm, fm
from pipeline.data.batches import Batch, Batches
from pipeline.embeddings.sharded import ShardedTables
from pipeline.experiment.method import build
from pipeline.models.model import Model, assemble
from pipeline.training import ranks
from pipeline.training.loop import fit
from pipeline.training.sharded import LitSharded
from tests.training.clicks import CTR, SCHEMA, Fatal, Killed, clicks

EPOCHS, STEPS, KILLED_AFTER, DIM = 3, 3, 4, 8  # 3 steps of an epoch
DIMS = dict(zip(SCHEMA.names, (8, 2, 5), strict=True))
OPTIONS: dict[str, Any] = {"lr": 0.02, "adagrad": 0.05, "schedule": "linear"}


def batches(kind: type[Batches] = Batches) -> Batches:
    """With a last batch of 35 rows, which two processes share unevenly."""
    return kind(clicks(235, 1), 100, seed=0)


def whole(backbone: ModuleType) -> Model:
    return assemble(SCHEMA, DIM, Allocation("autodim", DIMS), build, backbone.Backbone, _options(backbone))


def _options(backbone: ModuleType) -> dict[str, Any]:
    return {"hidden": (8,), "dropout": 0.5} if backbone is deepfm else {}


def module(backbone: ModuleType) -> LitSharded:
    torch.manual_seed(0)
    share = ranks.share()
    assert share is not None
    tables = ShardedTables(SCHEMA, list(DIMS.values()), DIM, share)
    model = Model(SCHEMA, tables, backbone.Backbone, _options(backbone))
    return LitSharded(model, lambda: whole(backbone), CTR, clicks(201, 2), EPOCHS * STEPS, **OPTIONS)


def collected(training: LitSharded) -> dict[str, torch.Tensor]:
    """The state of the whole model, in the first process."""
    with torch.random.fork_rng():
        return {name: value.clone() for name, value in training.trained().state_dict().items()}


def trained(backbone: ModuleType, folder: Path, kind: type[Batches] = Batches, seconds: float = 60) -> dict[str, Any]:
    training, rows = module(backbone), batches(kind)
    training.keep_best()
    begun, drawn = collected(training), torch.get_rng_state()
    with contextlib.suppress(Killed):
        fit(training, rows, EPOCHS, None, folder / "last.ckpt", seconds)
    return {
        "begun": begun,
        "drawn": drawn,
        "state": collected(training),
        "history": training.history,
        "weights": [weight.clone() for weight in training.tables.shards.weights],
        "pieces": [vars(piece) for piece in training.tables.shards.pieces],
    }


def killed(folder: Path) -> dict[str, Any]:
    """A training that breaks off, and what is left of it."""
    Fatal.steps = KILLED_AFTER
    result = trained(deepfm, folder, Fatal, seconds=0)
    ranks.wait_for_all()
    return result | {"files": sorted(path.name for path in folder.iterdir())}


def of_three(folder: Path) -> str:
    """The error for a checkpoint of three processes."""
    if ranks.first():
        checkpoint = torch.load(folder / "last.ckpt")
        checkpoint["training"]["processes"] = 3
        torch.save(checkpoint, folder / "three.ckpt")
    ranks.wait_for_all()
    try:
        fit(module(deepfm), batches(), EPOCHS, None, folder / "three.ckpt")
    except ValueError as error:
        return str(error)
    return "it went on"


def damaged(folder: Path) -> dict[str, Any]:
    """A training whose second process finds its file damaged."""
    if not ranks.first():
        file = folder / f"last.ckpt.1-{KILLED_AFTER}"
        file.write_bytes(file.read_bytes()[:-100])
    return trained(deepfm, folder)


class _Deadly(Batches):
    """Batches of which the second process does not survive the third."""

    def __iter__(self) -> Iterator[Batch]:
        for number, batch in enumerate(super().__iter__()):
            if number == 2 and not ranks.first():
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch


def dies() -> None:
    """A training whose second process is killed."""
    torch.set_num_threads(1)
    fit(module(fm), batches(_Deadly), EPOCHS, None, Path.cwd() / "last.ckpt")


def run() -> None:
    """The work of a process; both have the same folder."""
    torch.set_num_threads(1)
    folder = Path.cwd()
    (folder / "killed").mkdir(exist_ok=True)
    other = folder / "damaged"
    results: dict[str, Any] = {"fm": trained(fm, folder), "deepfm": trained(deepfm, folder)}
    results["killed"] = killed(folder / "killed")
    if ranks.first():
        shutil.copytree(folder / "killed", other)
    results["of three"] = of_three(folder / "killed")
    results["resumed"] = trained(deepfm, folder / "killed")
    results["damaged"] = damaged(other)
    torch.save(results, folder / f"rank-{ranks.rank()}.pt")
