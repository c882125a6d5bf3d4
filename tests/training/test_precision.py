"""With bfloat16, the backbone's matrix products are rounded in training, and nothing else is."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.backbones import deepfm
from pipeline.data.batches import Batch, Batches
from pipeline.data.encoded import Encoded
from pipeline.models.model import Model
from pipeline.tasks import retrieval
from pipeline.training.loop import fit
from pipeline.training.search import LitSearch
from pipeline.training.task import Task
from pipeline.training.weights import LitWeights
from pipeline.workflow.plug import plug
from tests.contracts import SCHEMA, built, dense, draw_ids, labels_of, randomised, supernet
from tests.interactions import retriever, write_interactions
from tests.training import cases
from tests.training.clicks import CTR, clicks
from tests.training.test_replay import BACKBONES, Operations, assert_can_be_replayed, operations, training

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]
PRODUCTS = ("mm", "attention", "linear")  # in the names of operations
Step = tuple[Tensor, dict[str, Tensor], list[Any]]  # loss, gradients, operations


def stepped(module: LitWeights, batch: Batch, bfloat16: bool) -> Step:
    module.model.mixed = bfloat16
    module.train()
    torch.manual_seed(1)
    with Operations() as run:
        loss = module.loss(batch, "train")
        loss.backward()
    gradients = {name: p.grad for name, p in module.model.named_parameters() if p.grad is not None}
    module.model.zero_grad(set_to_none=True)
    return loss.detach(), gradients, run.calls


def products(calls: list[Any]) -> list[tuple[str, set[str]]]:
    """The products of a step, and the types of what they multiply."""
    found = []
    for name, args, _ in calls:
        if any(word in name for word in PRODUCTS):
            found.append((name, {arg[1] for arg in args if isinstance(arg, tuple) and len(arg) == 2 and arg[1] != ()}))
    return found


def ctr(backbone: str) -> tuple[LitWeights, Batch]:
    torch.manual_seed(0)
    embedding, kept, _ = built("full")
    model = Model(SCHEMA, randomised(embedding), plug("backbones", backbone).Backbone, None, kept)
    ids = draw_ids(0, 511)
    return LitWeights(model, CTR, clicks(50, 0), 100), Batch(ids, labels_of(ids))


def assert_rounded(plain: Step, rounded: Step) -> None:
    """A product is off by 2^-9. Behind a ReLU that opens or shuts, a gradient is off by a tenth; one that is zero but
    for rounding, as that of a bias before BatchNorm, stays small."""
    torch.testing.assert_close(rounded[0], plain[0], rtol=0.01, atol=0)
    assert rounded[1].keys() == plain[1].keys()
    largest = max(float(dense(gradient).norm()) for gradient in plain[1].values())
    for name, gradient in plain[1].items():
        ours, theirs = dense(rounded[1][name]), dense(gradient)
        assert ours.dtype == torch.float32
        assert float((ours - theirs).norm()) <= 0.15 * float(theirs.norm()) + 0.002 * largest, name


@pytest.mark.parametrize("backbone", BACKBONES)
def test_products_are_in_bfloat16_and_gradients_those_of_float32_up_to_rounding(backbone: str) -> None:
    module, batch = ctr(backbone)
    plain, rounded = (stepped(module, batch, bfloat16) for bfloat16 in (False, True))
    assert_rounded(plain, rounded)
    assert {kind for _, kinds in products(plain[2]) for kind in kinds} <= {"torch.float32"}
    forward = [kinds for name, kinds in products(rounded[2]) if "backward" not in name]
    assert forward == [{"torch.bfloat16"}] * len(forward) and bool(forward) == (backbone != "fm")
    if backbone != "fm":
        assert not torch.equal(plain[0], rounded[0])


def test_predictions_are_those_of_float32() -> None:
    module, batch = ctr("deepfm")
    with torch.no_grad():
        expected = module.model.eval()(batch.ids)
        module.model.mixed = True
        assert torch.equal(module.model(batch.ids), expected)


@pytest.mark.parametrize("pooling", ["gru", "mean", "attention"])
def test_towers_are_rounded_and_their_gru_is_not(tmp_path: Path, pooling: str) -> None:
    data = Encoded.load(write_interactions(tmp_path))
    options = {"ids": "both", "id_dropout": 0.0, "dropout": 0.0, "pooling": pooling}
    model = retriever(data, "two_tower", **options).float()
    task = Task.of("retrieval", retrieval, {"negatives": 20})
    module = LitWeights(model, task, data.split("val"), 10)
    batch = task.batches(data.split("train"), 60, 0).take()
    plain, rounded = (stepped(module, batch, bfloat16) for bfloat16 in (False, True))
    assert_rounded(plain, rounded)
    kinds = [kinds for _, kinds in products(rounded[2])]
    assert {"torch.bfloat16"} in kinds
    assert all(len(kind) == 1 for kind in kinds)  # scores, and a GRU, are products of float32
    with torch.no_grad():
        assert all(vectors.dtype == torch.float32 for vectors in model(batch.ids))


def searching(bfloat16: bool = True) -> LitSearch:
    """`cases.searching` in float32."""
    module = cases.searching()
    module.model, module.task = module.model.float(), CTR
    module.model.mixed = bfloat16
    return module


def test_the_architecture_learns_from_the_rounded_products_and_stays_float32() -> None:
    gradients = []
    for bfloat16 in (False, True):
        module = searching(bfloat16)
        module.train()
        module.configure_optimizers()
        module.model.embedding.before_step(20, 21)  # after the warm-up
        torch.manual_seed(1)
        with Operations() as run:
            module.arch_step(Batches(clicks(500, 1), 50, seed=0).take())
        (arch,) = module.model.embedding.arch_parameters()
        assert arch.dtype == torch.float32 and arch.grad is not None
        gradients.append(arch.grad)
        assert (("torch.bfloat16" in str(run.calls)), arch.grad.dtype) == (bfloat16, torch.float32)
    assert float(torch.cosine_similarity(*(g.flatten() for g in gradients), 0)) > 0.98


def short(folder: Path, precision: Any, batches: Batches | None = None, seconds: float = 60) -> LitWeights:
    model = cases.weights(precise=False).model
    module = LitWeights(model, CTR, clicks(2000, 2), 60, lr=0.02, precision=precision)
    fit(module, batches or Batches(clicks(1000, 1), 50, seed=0), 3, None, folder / "last.ckpt", seconds)
    return module


def test_a_short_training_reaches_the_same_auc(tmp_path: Path) -> None:
    """Its standard error is 0.01 on 2,000 rows."""
    plain, rounded = (short(tmp_path / str(precision), precision) for precision in (32, "bf16"))
    assert plain.history[-1]["auc"] > 0.75
    assert rounded.history[-1]["auc"] == pytest.approx(plain.history[-1]["auc"], abs=0.01)
    assert rounded.history != plain.history
    assert all(p.dtype == torch.float32 for p in rounded.model.parameters())
    states = [state for o in rounded.trainer.optimizers for values in o.state.values() for state in values.values()]
    assert {state.dtype for state in states if isinstance(state, Tensor)} == {torch.float32}


@pytest.mark.parametrize("case", [searching, partial(cases.weights, precise=False, precision="bf16")])
def test_a_rounded_training_that_was_killed_ends_as_an_uninterrupted_one(tmp_path: Path, case: Any) -> None:
    straight = cases.trained(case(), tmp_path / "straight")
    cases.killed(case(), tmp_path / "killed")
    assert (tmp_path / "killed/last.ckpt").exists()
    resumed = cases.trained(case(), tmp_path / "killed")
    assert resumed["history"] == straight["history"]
    for name, value in straight["state"].items():
        assert not isinstance(value, Tensor) or torch.equal(resumed["state"][name], value), name


def test_rounded_steps_run_the_same_operations_whatever_a_batch_holds() -> None:
    plain, search = training(*built("full")[:2]), searching()
    search.model = Model(SCHEMA, supernet("autodim"), deepfm.Backbone)
    for module in (plain, search):
        module.model.mixed = True
        steps = operations(module)
        assert_can_be_replayed(steps)
        assert "torch.bfloat16" in str(steps[0])
