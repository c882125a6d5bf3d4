"""A step with fixed shapes is the same step, and it runs the same operations whatever the batch holds.

A GPU can replay a step if nothing in it reads a tensor, and if no shape and no number changes from batch to batch. Both
can be seen on a CPU, in the list of the operations that torch runs.
"""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.backbones import deepfm
from pipeline.data.batches import Batch
from pipeline.data.schema import PADDING
from pipeline.embeddings.batch import Lookup, Occurrences, spread
from pipeline.embeddings.coded import ExaminedTables
from pipeline.embeddings.contract import FieldEmbedding
from pipeline.embeddings.fixed import FixedLookup
from pipeline.models.model import Model
from pipeline.training.row_adam import RowAdam
from pipeline.training.search import LitSearch
from pipeline.training.weights import LitWeights
from pipeline.workflow.plug import names, plug
from tests.contracts import (
    DIM,
    METHODS,
    SCHEMA,
    TRAINED,
    assert_equal_gradients,
    built,
    draw_ids,
    labels_of,
    supernet,
)
from tests.training import cases
from tests.training.clicks import CTR, clicks

READS = ("_local_scalar_dense", "nonzero", "unique", "masked_select", "equal.default")
BACKBONES = [
    name
    for name in names("backbones")
    if name != "session" and not hasattr(plug("backbones", name).Backbone, "graph") and name != "two_tower"
]


class Operations(TorchDispatchMode):
    """Lists the operations that run, with the shapes, types and numbers that they are given, but not with tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append((str(function), _described(args), _described(tuple((kwargs or {}).items()))))
        return function(*args, **(kwargs or {}))


def _described(value: Any) -> Any:
    if isinstance(value, Tensor):
        return tuple(value.shape), str(value.dtype)
    if isinstance(value, list | tuple):
        return tuple(_described(one) for one in value)
    return value if isinstance(value, int | float | str | bool | None | torch.dtype) else type(value).__name__


def batch(seed: int) -> Batch:
    ids = draw_ids(seed, 96)
    return Batch(ids, labels_of(ids))


def operations(module: LitWeights) -> list[list[Any]]:
    """Those of three steps on batches of as many rows, after two steps."""
    module.fix()
    module.train()
    optimizers = module.configure_optimizers()
    found = []
    for seed in range(5):
        one = batch(seed)
        module.model.embedding.before_step(50 + seed, 100)
        module._set_rates(optimizers)
        with Operations() as run:
            module._update(one, optimizers)
            if isinstance(module, LitSearch) and module._arch_optimizer is not None:
                module._update_arch(one, one)
        module.steps += 1
        found.append(run.calls)
    return found[2:]


def assert_can_be_replayed(steps: list[list[Any]]) -> None:
    for one in steps:
        assert [call for call in one if any(name in call[0] for name in READS)] == []
        for first, other in zip(steps[0], one, strict=True):
            assert first == other


def training(embedding: FieldEmbedding, kept: Any, backbone: str = "deepfm") -> LitWeights:
    torch.manual_seed(0)
    model = Model(SCHEMA, embedding, plug("backbones", backbone).Backbone, None, kept)
    return LitWeights(model, CTR, clicks(50, 0), 100, weight_decay=0.01, schedule="linear", cuda_graph=True)


@pytest.mark.parametrize("name", METHODS)
def test_what_is_called_replayable_can_be_replayed(name: str) -> None:
    embedding, kept, _ = built(name)
    if embedding.replayable:
        assert_can_be_replayed(operations(training(embedding, kept)))
    else:
        with pytest.raises(ValueError, match=f"shapes in {type(embedding).__name__} depend on the batch"):
            training(embedding, kept, "ipnn").fix()


def test_adagrad_is_not_replayed() -> None:
    module = training(*built("full")[:2])
    module.adagrad = 0.05
    with pytest.raises(ValueError, match="cuda_graph is true, and steps of Adagrad are not replayed; set it to false"):
        module.fix()


@pytest.mark.parametrize("backbone", BACKBONES)
def test_full_tables_can_be_replayed_with_every_backbone(backbone: str) -> None:
    embedding, kept, _ = built("full")
    assert embedding.replayable
    assert_can_be_replayed(operations(training(embedding, kept, backbone)))


@pytest.mark.parametrize("name", TRAINED)
def test_a_search_can_be_replayed_if_its_supernet_says_so(name: str) -> None:
    embedding = supernet(name)
    if not embedding.replayable:
        return
    search = cases.searching()
    search.model = Model(SCHEMA, embedding, deepfm.Backbone)
    search.task = CTR
    assert_can_be_replayed(operations(search))


def test_the_paper_and_full_tables_are_replayable() -> None:
    assert {name for name in METHODS if built(name)[0].replayable} >= {"full", "uniform", "autodim", "mde"}
    searched = supernet("autodim")
    assert searched.replayable and searched.arch_parameters()


@pytest.mark.parametrize("case", [cases.weights, cases.searching])
def test_a_training_with_fixed_shapes_is_the_same_training(case: Any, tmp_path: Path) -> None:
    fixed = case()
    fixed.fix()
    ours, plain = cases.trained(fixed, tmp_path / "ours"), cases.trained(case(), tmp_path / "plain")
    assert len(ours["history"]) == cases.EPOCHS
    for name, value in plain["state"].items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(ours["state"][name], value, rtol=1e-6, atol=1e-7)
    assert torch.equal(ours["rng"], plain["rng"])


def pair(ids: Tensor) -> tuple[Occurrences, Occurrences]:
    return FixedLookup(SCHEMA)(ids), Lookup(SCHEMA)(ids)


@pytest.mark.parametrize("seed", range(3))
def test_the_distinct_rows_come_first_in_each_field_and_the_last_is_repeated(seed: int) -> None:
    fixed, plain = pair(draw_ids(seed, 96))
    assert fixed.segments is not None and sum(fixed.segments.widths) == len(fixed.rows) == 96 * SCHEMA.num_slots
    begin = first = 0
    for width, end in zip(fixed.segments.widths, plain.ends.tolist(), strict=True):
        own = plain.rows[first:end]
        expected = torch.cat([own, own[-1:].expand(width - len(own))])
        assert fixed.rows[begin : begin + width].tolist() == expected.tolist()
        assert fixed.mass()[begin + len(own) : begin + width].tolist() == [0.0] * (width - len(own))
        torch.testing.assert_close(fixed.mass()[begin : begin + len(own)], plain.mass()[first:end])
        begin, first = begin + width, end


def test_a_bag_that_is_empty_in_the_whole_batch_has_zeros() -> None:
    ids = draw_ids(0, 96).clone()
    ids[:, 3:] = PADDING
    fixed, plain = pair(ids)
    table = torch.randn(SCHEMA.num_rows, DIM, requires_grad=True)
    ours, theirs = spread(table[fixed.rows], fixed), spread(table[plain.rows], plain)
    torch.testing.assert_close(ours, theirs)
    assert_equal_gradients(ours.square().sum(), theirs.square().sum(), [table])


def test_in_evaluation_nothing_is_repeated() -> None:
    lookup = FixedLookup(SCHEMA).eval()
    assert lookup(draw_ids()).segments is None


def test_row_adam_with_repeated_rows_is_row_adam() -> None:
    """Also with its number of steps and its rate on the device, and from another one's checkpoint."""
    torch.manual_seed(0)
    start = torch.randn(9, 3, dtype=torch.float64)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    rate = torch.tensor(0.1, dtype=torch.float64)
    fixed = RowAdam([ours], lr=rate, weight_decay=0.1, fixed=True)
    plain = RowAdam([theirs], lr=0.1, weight_decay=0.1)
    for step in range(6):
        values = torch.randn(3, 3, dtype=torch.float64)
        rows = torch.tensor([1, 4, 6]) + step % 2
        theirs.grad = torch.sparse_coo_tensor(rows[None], values, theirs.shape, check_invariants=True)
        repeated = torch.tensor([0, 1, 1, 1, 2, 2])
        held = values[repeated] * torch.tensor([1, 1, 0, 0, 1, 0])[:, None]
        ours.grad = torch.sparse_coo_tensor(rows[repeated][None], held, ours.shape, check_invariants=True)
        fixed.step()
        plain.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
        if step == 2:
            saved = fixed.state_dict()
            fixed.load_state_dict(plain.state_dict())
            fixed.param_groups[0]["lr"] = rate
            plain.load_state_dict(saved)
            plain.param_groups[0]["lr"] = 0.1


def test_row_adam_goes_on_exactly_from_its_own_checkpoint() -> None:
    """The number of steps stays a float64: in float32, the corrections of the moments would be others."""

    def optimizer(weight: Tensor) -> tuple[torch.nn.Parameter, RowAdam]:
        param = torch.nn.Parameter(weight.clone())
        return param, RowAdam([param], lr=torch.tensor(0.1), fixed=True)

    def steps(param: torch.nn.Parameter, adam: RowAdam, numbers: range) -> None:
        for number in numbers:
            values = torch.randn(3, 2, generator=torch.Generator().manual_seed(number))
            param.grad = torch.sparse_coo_tensor([[0, 2, 3]], values, param.shape, check_invariants=True)
            adam.step()

    through, adam = optimizer(torch.ones(4, 2))
    steps(through, adam, range(6))
    saved = copy.deepcopy(adam.state_dict())
    again, other = optimizer(through.detach())
    other.load_state_dict(saved)
    steps(through, adam, range(6, 40))
    steps(again, other, range(6, 40))
    assert torch.equal(again, through)
    assert "capturable" not in saved["param_groups"][0]


def test_shared_rows_of_coded_tables_cannot_be_replayed() -> None:
    own = np.full(len(SCHEMA), 5)
    assert ExaminedTables(SCHEMA, DIM).replayable and not ExaminedTables(SCHEMA, DIM, own).replayable


def test_after_a_training_the_distinct_rows_alone_are_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed = cases.weights(precise=False)
    fixed.fix()
    cases.trained(fixed, tmp_path)
    assert fixed.model.train().lookup(draw_ids()[:, :5] % 2).segments is None


def test_what_cannot_be_replayed_is_refused() -> None:
    search = cases.searching(order=2)
    with pytest.raises(ValueError, match="order 1 and level bilevel"):
        search.fix()
