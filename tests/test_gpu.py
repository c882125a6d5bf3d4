"""What is computed on a GPU is what is computed on a CPU; nothing here runs where there is no GPU."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline.data.batches import Batches
from pipeline.data.schema import Schema
from pipeline.embeddings.batch import Lookup
from pipeline.embeddings.contract import FieldEmbedding
from pipeline.embeddings.cost import cost
from pipeline.embeddings.table import Table
from pipeline.experiment.experiment import suitable
from pipeline.training.ahead import Ahead
from pipeline.training.row_adam import RowAdam
from pipeline.training.weights import LitWeights
from tests.contracts import (
    METHODS,
    SCHEMA,
    SMALL_LOOKUP,
    TRAINED,
    built,
    dense,
    draw_embedded,
    draw_ids,
    ids_of,
    make_backbone,
    randomised,
    served,
    small_ids,
    supernet,
)
from tests.project import Project
from tests.training import cases
from tests.training.clicks import clicks

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def assert_close(there: Tensor, here: Tensor) -> None:
    """Sums come in another order there."""
    assert there.is_cuda and not here.is_cuda
    torch.testing.assert_close(there.detach().cpu(), here.detach(), rtol=1e-3, atol=1e-5)


def assert_equal_there(
    module: FieldEmbedding, there: FieldEmbedding, schema: Schema, ids: Tensor, trained: bool = True
) -> None:
    """Vectors and gradients of one batch, of equal modules; where the vectors are drawn, as they are evaluated."""
    lookup = Lookup(schema)
    before = copy.deepcopy(module.state_dict())
    with torch.no_grad():
        drawn = not torch.equal(module(lookup(ids)), module(lookup(ids)))
        drawn |= any(not torch.equal(p, before[name]) for name, p in module.named_parameters())  # rounded at random
    module.load_state_dict(before)
    module.train(module.training and not drawn)
    there.load_state_dict(module.state_dict())
    there.cuda().train(module.training)
    here, found = module(lookup(ids)), there(copy.deepcopy(lookup).cuda()(ids.cuda()))
    assert_close(found, here)
    weight = torch.randn(here.shape, generator=torch.Generator().manual_seed(5))
    if not trained:
        return
    module.objective((here * weight).sum(), "train").backward()
    there.objective((found * weight.cuda()).sum(), "train").backward()
    others = dict(there.named_parameters())
    for name, parameter in module.named_parameters():
        assert (parameter.grad is None) == (others[name].grad is None), name
        if parameter.grad is not None:
            assert_close(dense(others[name].grad), dense(parameter.grad))


@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_builds(name: str) -> None:
    embedding, kept, _ = built(name)
    randomised(embedding)
    embedding.before_step(1, 100)
    there, _, _ = built(name)
    there.before_step(1, 100)
    assert_equal_there(embedding, there, kept, ids_of(kept))


@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_serves(name: str) -> None:
    embedding, kept = served(name)
    assert_equal_there(embedding, built(name)[0].eval(), kept, ids_of(kept), trained=False)


@pytest.mark.parametrize("name", TRAINED)
def test_a_supernet(name: str) -> None:
    embedding = randomised(supernet(name))
    assert isinstance(embedding, FieldEmbedding)
    assert_equal_there(embedding, supernet(name), SCHEMA, draw_ids())


@pytest.mark.parametrize("name", METHODS)
def test_what_is_finished_there(name: str) -> None:
    """Codebooks, masks and codes are made where the model is."""
    embedding, kept, _ = built(name)
    randomised(embedding)
    there, lookup = copy.deepcopy(embedding).cuda(), Lookup(kept).cuda()
    there(lookup(ids_of(kept).cuda()))
    there.finish()
    assert cost(there.packed()) == cost(embedding.packed())
    here, _, _ = built(name)
    here.load_state_dict(there.state_dict())
    assert_close(there.eval()(lookup(ids_of(kept).cuda())), here.eval()(Lookup(kept)(ids_of(kept))))


@pytest.mark.parametrize("name", suitable(interactions=False))
def test_a_backbone(name: str) -> None:
    """In float64: attention's gradient there is in TF32 otherwise."""
    here = make_backbone(name).eval().double()
    there: nn.Module = copy.deepcopy(here).cuda()
    ids, lookup = small_ids(), SMALL_LOOKUP
    one, two = draw_embedded().double().requires_grad_(), draw_embedded().double().cuda().requires_grad_()
    first, second = here(lookup(ids), one), there(copy.deepcopy(lookup).cuda()(ids.cuda()), two)
    assert_close(second, first)
    first.sum().backward()
    second.sum().backward()
    assert one.grad is not None and two.grad is not None
    assert_close(two.grad, one.grad)


def test_steps_of_row_adam() -> None:
    torch.manual_seed(0)
    embedding, kept, _ = built("full")
    there, lookup = copy.deepcopy(embedding).cuda(), Lookup(kept)
    tables = [[m.weight for m in module.modules() if isinstance(m, Table)] for module in (embedding, there)]
    here, elsewhere = (RowAdam(weights, lr=0.01, weight_decay=0.001) for weights in tables)
    for step in range(5):
        ids = ids_of(kept, step)
        for module, optimizer, looked_up in (
            (embedding, here, lookup(ids)),
            (there, elsewhere, copy.deepcopy(lookup).cuda()(ids.cuda())),
        ):
            optimizer.zero_grad(set_to_none=True)
            module(looked_up).square().sum().backward()
            optimizer.step()
    for one, two in zip(*tables, strict=True):
        assert_close(two, one)


def test_batches_that_come_ahead_are_the_same() -> None:
    plain, ahead = (Batches(clicks(5000, 1), 50, seed=1) for _ in range(2))
    fed = Ahead(ahead, torch.device("cuda", 0))
    for _ in range(2):
        for there, here in zip(fed, plain, strict=True):
            busy = torch.ones(1000, 1000, device="cuda")
            for _ in range(5):
                busy = busy @ busy  # the step, while the next batch is copied
            for one, other in zip(there.tensors(), here.tensors(), strict=True):
                assert one.is_cuda and torch.equal(one.cpu(), other)
            assert fed.state_dict() == plain.state_dict()


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.parametrize("graph", [False, True])
def test_a_training_in_bfloat16_goes_on_exactly(tmp_path: Path, graph: bool) -> None:
    def make() -> LitWeights:
        module = cases.weights(precise=False, precision="bf16")
        module.cuda_graph = graph
        return module

    straight = cases.trained(make(), tmp_path / "straight")
    assert straight["history"] != cases.trained(cases.weights(precise=False), tmp_path / "plain")["history"]
    cases.killed(make(), tmp_path / "killed")
    resumed = cases.trained(make(), tmp_path / "killed")
    assert resumed["history"] == straight["history"] and len(resumed["history"]) == cases.EPOCHS
    for name, value in straight["state"].items():
        assert not isinstance(value, Tensor) or torch.equal(resumed["state"][name], value), name


def test_a_run_there_learns(planted: Project, tmp_path_factory: pytest.TempPathFactory) -> None:
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    project = planted.copy(tmp_path_factory.mktemp("gpu")).run("search", "derive", "retrain", "evaluate")
    assert torch.cuda.max_memory_allocated() > before
    assert project.read("report.json")["allocations"]["searched"]["metrics"]["auc"]["mean"] > 0.5
