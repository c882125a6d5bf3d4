"""The project's own recommenders on benchmarks of interactions: their epochs, their ranking, their propagation.

As a program, it trains one epoch for each line on its standard input, as `benchmarks.rivals` does:

    python -m benchmarks.recommenders MODEL LOSS ENCODED BATCH_SIZE TURNS
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import models, timing
from benchmarks.alone import ROOT
from benchmarks.encoders.product import ingest
from benchmarks.rivals import Clock, Turns
from pipeline.backbones.lightgcn import Backbone as LightGCN
from pipeline.data.encoded import Encoded
from pipeline.data.interactions import ITEM_COLUMN, USER_COLUMN
from pipeline.encoding.encode import encode
from pipeline.experiment.experiment import Experiment
from pipeline.experiment.train import prepare
from pipeline.models.graph import Graph
from pipeline.sources.opening import opened
from pipeline.training.loop import fit
from pipeline.training.weights import LitWeights
from pipeline.workflow.overlay import merged
from pipeline.workflow.params import Params
from pipeline.workflow.validation import validated
from pipeline.workflow.yaml_values import read_yaml

DIM, LAYERS = 64, 3
BPR, SOFTMAX = "bpr", "softmax"
LOSSES: dict[str, dict[str, Any]] = {
    BPR: {"loss": "bpr", "negatives": 1, "score": "dot", "temperature": 1.0},
    SOFTMAX: {"loss": "softmax", "negatives": 1_000_000, "in_batch": False},  # more than there are: all items
}


def params(path: str = "data", model: str = "lightgcn", loss: str = BPR, batch_size: int = 2048) -> Params:
    """The repository's parameters for interactions, with full tables.

    Args:
        path: folder of the data set.
        model: name of a backbone.
        loss: one of `LOSSES`.
        batch_size: rows of a batch.
    """
    changes = {
        "dataset": {"name": "interactions", "path": path},
        "task": {"options": LOSSES[loss]},
        "method": {"name": "full"},
        "dim": DIM,
        "backbone": {"name": model, "options": {"layers": LAYERS} if model == "lightgcn" else {}},
        "retrain": {"batch_size": batch_size, "checkpoint_seconds": models.NEVER},
    }
    values = merged(read_yaml(ROOT / "params.yaml"), read_yaml(ROOT / "params/graph.yaml"))
    values["backbone"] = {}  # its options are those of another backbone
    values["task"]["options"] = {}
    return validated(Params, merged(values, changes), "params.yaml, changed")


def pairs(encoded: str) -> np.ndarray:
    """(n, 2) users and items of the training rows."""
    rows = np.concatenate(Encoded.load(encoded).split("train", "arch").ids)
    return rows[:, [USER_COLUMN, ITEM_COLUMN]]


def encode_to(folder: Path, path: str) -> Encoded:
    """A data set, ingested and encoded in a folder.

    Raises:
        NotFound: if its files are not there.
    """
    chosen = params(path)
    source = opened(chosen.dataset)
    folder.mkdir()
    ingest(source, folder / "raw")
    encode(folder / "raw", folder / "encoded", chosen.encode)
    return Encoded.load(folder / "encoded")


class Timed(LitWeights):
    """Times its epochs, and validates nothing. With ``turns``, it waits for one before every epoch."""

    turns: Turns | None = None
    clock: Clock
    said: Any = None

    def on_train_epoch_start(self) -> None:
        if self.turns is not None and not self.turns.wait(self.said):
            sys.exit()
        self.clock = Clock()

    def on_train_epoch_end(self) -> None:
        assert all(bool(loss.isfinite()) for loss in self._losses)
        self.said = self.clock.read()


def prepared(encoded: str, model: str, loss: str, batch_size: int, kind: type[LitWeights] = LitWeights) -> Any:
    """A fresh module of a kind, its batches, and its experiment."""
    experiment = Experiment(params(model=model, loss=loss, batch_size=batch_size), Encoded.load(encoded))
    settings = experiment.params.retrain
    like, batches = prepare(experiment, models.full(experiment.schema, DIM), 0, settings, None)
    module = kind(like.model, like.task, like.validation, like.planned, lr=settings.lr, schedule="constant")
    return module, batches, experiment


def train(module: LitWeights, batches: Any, epochs: int) -> None:
    """Epochs in the project's own loop."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning")  # its hints at workers
        fit(module, batches, epochs, None, Path(folder) / "none.ckpt", models.NEVER)


def epoch(encoded: str, model: str, loss: str, batch_size: int) -> dict[str, float]:
    """`Clock.read` of one epoch of training, without validation, in this process."""
    module, batches, _ = prepared(encoded, model, loss, batch_size, Timed)
    train(module, batches, 1)
    return module.said  # type: ignore[no-any-return]


def ranking(encoded: str) -> dict[str, float]:
    """`Clock.read` of ranking all items for all users of ``test`` with a fresh LightGCN."""
    module, _, experiment = prepared(encoded, "lightgcn", SOFTMAX, 2048)
    test = experiment.data.split("test")
    clock = Clock()
    ranked = experiment.task.predict(module.model, test)
    return clock.read() | {"queries": len(ranked), "items": len(test.interactions.items)}


OWN, CSR, COO = "this project", "torch.sparse.mm, CSR", "torch.sparse.mm, COO"


def propagation(encoded: str, rounds: int) -> dict[str, Any]:
    """`timing.summary` of the forward and backward pass of LightGCN's layers, with the matrix in different forms."""
    module, _, _ = prepared(encoded, "lightgcn", BPR, 2048)
    graph: Graph = module.model.graph
    backbone: LightGCN = module.model.backbone
    torch.manual_seed(0)
    vectors = torch.randn(graph.nodes, DIM, requires_grad=True)
    upstream = torch.randn(graph.nodes, DIM)
    scale = torch.where(graph.degrees > 0, graph.degrees.rsqrt(), 0)
    places = torch.stack([torch.cat([graph.users, graph.items]), torch.cat([graph.items, graph.users])])
    values, shape = scale[places[0]] * scale[places[1]], (graph.nodes, graph.nodes)
    coo = torch.sparse_coo_tensor(places, values, shape, check_invariants=True).coalesce()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        csr = coo.to_sparse_csr()

    def through(matrix: Tensor) -> Tensor:
        total = layer = vectors
        for _ in range(LAYERS):
            layer = torch.sparse.mm(matrix, layer)
            total = total + layer
        return total / (LAYERS + 1)

    passes = {OWN: lambda: backbone(vectors, graph), CSR: lambda: through(csr), COO: lambda: through(coo)}
    found = {name: (out := run(), torch.autograd.grad(out, vectors, upstream)[0]) for name, run in passes.items()}
    for out in found.values():
        torch.testing.assert_close(out, found[OWN], rtol=1e-3, atol=1e-4)
    steps: dict[str, timing.Step] = {
        name: (lambda _, run=run: torch.autograd.grad(run(), vectors, upstream)) for name, run in passes.items()
    }
    taken = timing.interleave(steps, rounds, warm_up=1)
    low = {name: {"least": float(values.min())} for name, values in taken.items()}
    return {name: entry | low[name] for name, entry in timing.summary(taken, OWN).items()}


def main() -> None:
    model, loss, encoded, batch_size, turns = sys.argv[1:]
    said = Turns()
    module, batches, _ = prepared(encoded, model, loss, int(batch_size), Timed)
    module.turns = said
    train(module, batches, int(turns))
    said.wait(module.said)


if __name__ == "__main__":
    main()
