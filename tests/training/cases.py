"""Trainings that one process or several do, each with the numbers that must not depend on how many there are."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from pipeline.allocation.allocation import Allocation
from pipeline.backbones import autoint, deepfm, nfm
from pipeline.data.batches import Batch, Batches
from pipeline.data.schema import Schema
from pipeline.embeddings.contract import FieldEmbedding
from pipeline.embeddings.selection import ANNEALED
from pipeline.experiment.method import build
from pipeline.methods import autodim
from pipeline.models.model import Model, assemble
from pipeline.tasks import ctr
from pipeline.training import ranks
from pipeline.training.loop import fit
from pipeline.training.search import LitSearch
from pipeline.training.task import Task
from pipeline.training.weights import LitWeights
from pipeline.workflow.params import Architecture, Precision
from tests.contracts import METHODS, TRAINED, built, dense, draw_ids, labels_of, problem, supernet
from tests.contracts import SCHEMA as WIDE
from tests.processes import start
from tests.training.clicks import CTR, SCHEMA, Fatal, Killed, clicks

Case = Callable[[Path], Any]
NOT_DIVIDED = ["cafe"]
EPOCHS, KILLED_AFTER = 3, 10


def _precise() -> Task:
    """CTR with its loss in float64; labels of float32 would make it float32."""
    module = ModuleType("precise")
    vars(module).update(vars(ctr))

    def loss(model: Any, batch: Batch) -> Tensor:
        return binary_cross_entropy_with_logits(model(batch.ids), batch.labels.double())

    module.loss = loss  # type: ignore[attr-defined]
    return Task.of("precise", module, {})


def weights(precise: bool = True, backbone: ModuleType = deepfm, precision: Precision = 32) -> LitWeights:
    """Mixed dimensions and bags; in the default backbone, BatchNorm and dropout."""
    torch.manual_seed(0)
    dims = dict(zip(SCHEMA.names, (4, 2, 1), strict=True))
    options = {} if backbone is autoint else {"hidden": (8,), "dropout": 0.5}
    model = assemble(SCHEMA, 4, Allocation("autodim", dims), build, backbone.Backbone, options)
    task = _precise() if precise else CTR
    model = model.double() if precise else model
    options: dict[str, Any] = {"lr": 0.02, "weight_decay": 0.01, "schedule": "linear", "precision": precision}
    return LitWeights(model, task, clicks(201, 2), EPOCHS * 7, **options)


def result(module: LitWeights) -> dict[str, Any]:
    """What must agree; not the bias before a BatchNorm, whose gradient is rounding, and the mean that follows it."""
    state = {name: value.clone() for name, value in module.model.state_dict().items()}
    for name in ("backbone.mlp.0.bias", "backbone.mlp.1.running_mean"):
        state.pop(name, None)
    return {"state": state, "history": module.history, "rng": torch.get_rng_state(), "losses": module._losses}


@contextlib.contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    """The shares of values in bags have the default type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def trained(module: LitWeights, folder: Path, batches: Batches | None = None, seconds: float = 60) -> Any:
    with _default(next(module.model.parameters()).dtype):
        fit(module, batches or Batches(clicks(335, 1), 50, seed=0), EPOCHS, "training", folder / "last.ckpt", seconds)
    return result(module)


def killed(module: LitWeights, folder: Path) -> Any:
    """A training that breaks off."""
    fatal = Fatal(clicks(335, 1), 50, seed=0)
    fatal.steps = KILLED_AFTER
    with contextlib.suppress(Killed):
        trained(module, folder, fatal, seconds=0)
    return {"history": module.history}


def searching(**architecture: Any) -> LitSearch:
    """AutoDim's bilevel search, with Gumbel noise."""
    torch.manual_seed(0)
    asked = problem("autodim", SCHEMA, 4, ((1, 2, 4),) * 3)
    embedding = autodim.find(asked, warm_up=0.2, temperature=ANNEALED)
    return LitSearch(
        Model(SCHEMA, embedding, deepfm.Backbone, {"hidden": (8,), "dropout": 0.5}).double(),
        _precise(),
        clicks(201, 2),
        EPOCHS * 7,
        Batches(clicks(121, 3), 50, seed=1),
        Architecture(**{"lr": 0.05, "every": 1, "stable_steps": None, **architecture}),
        SCHEMA.names,
        ((1, 2, 4),) * 3,
        asked.prices,
        lr=0.01,
    )


def searched(folder: Path, **architecture: Any) -> Any:
    module = searching(**architecture)
    return trained(module, folder) | {"trajectory": torch.stack([p for _, _, p in module.trajectory])}


class _Products(nn.Module):
    """A backbone to which every coordinate of every field contributes."""

    def __init__(self, schema: Schema, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(len(schema), dim))

    def forward(self, occ: Any, embedded: Tensor) -> Tensor:
        return (embedded * self.weight).sum((1, 2)) + embedded.sum(1).square().sum(1)


def gradients(embedding: FieldEmbedding, kept: Schema) -> dict[str, Tensor]:
    """The gradients of a batch of 511 rows in all parameters of a model."""
    torch.manual_seed(1)
    module = LitWeights(Model(WIDE, embedding, _Products, kept=kept), CTR, clicks(50, 0), 100)
    if (share := ranks.share()) is not None:
        module.divide(share, 511)
    ids = draw_ids()[:511]
    loss = module.loss(Batch(ids, labels_of(ids)), "train")
    used = {name: p for name, p in module.model.named_parameters() if p.requires_grad}
    found = module.gradient(loss, list(used.values()), allow_unused=True)
    values = {name: dense(g) for name, g in zip(used, found, strict=True) if g is not None}
    return values | {"loss": loss.detach(), "rng": torch.get_rng_state().float()}


def of_methods(folder: Path) -> dict[str, dict[str, Tensor]]:
    """The gradients of what every method builds, and of every supernet."""
    values = {name: gradients(*built(name)[:2]) for name in METHODS if name not in NOT_DIVIDED}
    return values | {f"{name}, search": gradients(supernet(name), WIDE) for name in TRAINED}


CASES: dict[str, Case] = {
    "weights": lambda folder: trained(weights(), folder),
    "another backbone": lambda folder: trained(weights(backbone=nfm), folder),
    "float32": lambda folder: trained(weights(precise=False, backbone=autoint), folder)["history"],
    "bfloat16": lambda folder: trained(weights(precise=False, precision="bf16"), folder)["history"],
    "first order": searched,
    "second order": lambda folder: searched(folder, order=2, every=3),
    "single level": lambda folder: searched(folder, level="single"),
    "killed": lambda folder: killed(weights(), folder),
    "search killed": lambda folder: killed(searching(), folder),
    "resumed": lambda folder: trained(weights(), folder),
    "search resumed": lambda folder: trained(searching(), folder),
    "methods": of_methods,
}


def run() -> None:
    """The work of a process: all cases, each in a folder of its name, which all processes share."""
    torch.set_num_threads(1)
    folder = Path.cwd()
    results = {name: case(folder / name) for name, case in CASES.items()}
    torch.save(results, folder / f"rank-{ranks.rank()}.pt")


def variables(rank: int, number: int, port: int) -> dict[str, str]:
    """What torchrun sets."""
    values = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": number, "LOCAL_WORLD_SIZE": number, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in values.items()}}


def started(work: Callable[[], object], folder: Path, number: int = 2) -> list[Any]:
    """Processes that torchrun would start; each prints to a file of its rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        start(work, folder, folder / f"printed-{rank}.txt", **variables(rank, number, port)) for rank in range(number)
    ]
