"""The library: tables of every method in a model and a training loop that know nothing of the project."""

import copy
import doctest
import pickle
import re
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from pipeline import api
from pipeline.api import PADDING, Allocation, Field, RowAdam, Schema, Tables, field_tables
from pipeline.api import tables as tables_module
from pipeline.api.calibration import OwnCalibration
from pipeline.embeddings.cost import spent
from pipeline.experiment.method import build
from tests.contracts import (
    DIM,
    METHODS,
    SCHEMA,
    assert_every_parameter_has_a_gradient,
    derived,
    draw_ids,
    labels_of,
    randomised,
)

MIXED = Allocation("autodim", {"user": 4, "item": 8, "age": 2, "tags": 4})
SERVED = [(name, first) for name in ("full", "autodim", "mde", "coded") for first in (False, True)][:-1]


class Own(nn.Module):
    """A model with the tables of an allocation."""

    def __init__(self, allocation: Allocation, **options: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tables = Tables(SCHEMA, DIM, allocation, **options)
        self.mlp = nn.Sequential(nn.Linear(len(self.tables.fields) * self.tables.dim, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, ids: Tensor) -> Tensor:
        made = self.tables(ids)
        vectors, linear = made if isinstance(made, tuple) else (made, 0.0)
        return self.mlp(vectors.flatten(1))[:, 0] + linear


def batches() -> list[Tensor]:
    return [draw_ids(seed) for seed in range(3)]


def losses(model: nn.Module, ids: Tensor) -> Tensor:
    return binary_cross_entropy_with_logits(model(ids), labels_of(ids), reduction="none")


def train(model: Own, *optimizers: torch.optim.Optimizer) -> list[float]:
    """The losses of a few steps on one batch."""
    seen = []
    for _ in range(25):
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss = losses(model, draw_ids()).mean()
        model.tables.objective(loss).backward()
        for optimizer in optimizers:
            optimizer.step()
        seen.append(loss.item())
    return seen


def trained(allocation: Allocation, **options: bool) -> Own:
    model = Own(allocation, **options)
    train(model, torch.optim.Adam(model.parameters(), lr=0.02))
    return model


# --- every method


@pytest.mark.parametrize("name", METHODS)
def test_tables_of_a_method_are_trained_with_any_optimizer_and_finished(name: str) -> None:
    model = Own(derived(name))
    before = model.tables.cost().bytes
    assert before == spent(build, SCHEMA, DIM, derived(name)).bytes
    seen = train(model, torch.optim.Adam(model.parameters(), lr=0.02))
    assert seen[-1] < seen[0] - 0.01
    model.tables.finish(model, batches(), losses)
    model.eval()
    vectors = model.tables(draw_ids().long())
    assert vectors.shape == (len(draw_ids()), len(model.tables.fields), model.tables.dim)
    assert torch.equal(vectors, model.tables(draw_ids()))
    assert model.tables.cost().bytes == before
    again = Own(derived(name))
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval().tables(draw_ids()), vectors)


@pytest.mark.parametrize(("name", "first_order"), SERVED)  # the allocation of coded has no first-order weights
def test_served_tables_return_what_the_trained_ones_do(name: str, first_order: bool) -> None:
    model = trained(derived(name), first_order=first_order)
    model.tables.finish(model, batches(), losses)
    served, ids = model.tables.served(), draw_ids(7)
    made, expected = served(ids), model.eval().tables(ids)
    for one, other in zip(made, expected, strict=True) if first_order else [(made, expected)]:
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        assert float(other.detach().std()) > 0.01


def test_a_method_without_a_served_form_says_so() -> None:
    model = trained(derived("dpq"))
    model.tables.finish()
    with pytest.raises(TypeError, match="only an embedding of MixedTables or CodedTables can be served"):
        model.tables.served()


# --- plain dimensions, against torch alone


def by_hand(tables: Tables, ids: Tensor) -> Tensor:
    """The vectors, from the tables of each field and PyTorch's own bags."""
    columns, vectors = {"user": [0], "item": [1], "age": [2], "tags": [3, 4, 5]}, []
    for table in field_tables(tables):
        own = ids[:, columns[table.config["name"]]].long()
        present = (own != PADDING)[..., None]
        mean = (table.weight[own.clamp(min=0)] * present).sum(1) / present.sum(1)
        vectors.append(mean if table.projection is None else mean @ table.projection)
    return torch.stack(vectors, 1)


def test_vectors_are_the_lifted_means_of_the_rows_of_each_field() -> None:
    tables = trained(MIXED).tables
    torch.testing.assert_close(tables(draw_ids()), by_hand(tables, draw_ids()), rtol=1e-4, atol=1e-6)


def test_sparse_and_dense_gradients_are_the_same_numbers() -> None:
    dense, sparse = Own(MIXED), Own(MIXED, sparse=True)
    for model in (dense, sparse):
        losses(model, draw_ids()).mean().backward()
    assert_every_parameter_has_a_gradient(dense)
    kinds = set()
    for one, other in zip(dense.parameters(), sparse.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None and not one.grad.is_sparse
        torch.testing.assert_close(one.grad, other.grad.to_dense())
        kinds.add(other.grad.is_sparse)
    assert kinds == {False, True}


@pytest.mark.parametrize("kind", [RowAdam, torch.optim.SparseAdam])
def test_sparse_gradients_train_with_optimizers_for_them(kind: type[torch.optim.Optimizer]) -> None:
    model = Own(MIXED, sparse=True)
    losses(model, draw_ids()).mean().backward()
    rows = [p for p in model.parameters() if p.grad is not None and p.grad.is_sparse]
    others = [p for p in model.parameters() if p.grad is not None and not p.grad.is_sparse]
    seen = train(model, kind(rows, lr=0.02), torch.optim.Adam(others, lr=0.02))
    assert seen[-1] < seen[0] - 0.01


def test_a_copy_of_a_model_trains_as_the_model_does() -> None:
    model = Own(MIXED)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    expected = train(model, torch.optim.Adam(model.parameters(), lr=0.02))
    for other in copies:
        assert train(other, torch.optim.Adam(other.parameters(), lr=0.02)) == expected


def test_a_dropped_field_has_no_vector_and_no_bytes() -> None:
    tables = Tables(SCHEMA, DIM, Allocation("autodim", {"user": 4, "item": 0, "age": 2, "tags": 0}))
    assert tables.fields == ("user", "age")
    assert tables(draw_ids()).shape[1:] == (2, DIM)
    assert tables.cost().bytes == 4 * (700 * 4 + 3 * 2 + (4 + 2) * DIM)


def test_first_order_weights_are_a_term_of_their_own_and_are_counted() -> None:
    model = trained(MIXED, first_order=True)
    tables = model.tables
    vectors, linear = tables(draw_ids())
    assert vectors.shape[1:] == (4, DIM) and linear.shape == (len(draw_ids()),) and float(linear.detach().std()) > 0
    without = Tables(SCHEMA, DIM, MIXED).cost().bytes
    assert tables.cost().bytes == without + 4 * SCHEMA.num_rows
    changed = draw_ids().clone()
    changed[:, 0] = (changed[:, 0] + 1) % 700
    weight = next(p for p in tables.parameters() if p.shape == (SCHEMA.num_rows, 1)).detach()[:, 0]
    moved = weight[changed[:, 0]] - weight[draw_ids()[:, 0]]
    torch.testing.assert_close((tables(changed)[1] - linear).detach(), moved, rtol=1e-4, atol=1e-5)


# --- coding by the loss of one's own model


class Scaled(nn.Module):
    """A model to which the first coordinates of a vector mean the most."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = randomised(Tables(SCHEMA, DIM, derived("coded", budget=4000)))

    def forward(self, ids: Tensor) -> Tensor:
        return (self.tables(ids).sum(1) * 0.4 ** torch.arange(DIM)).sum(1)


def test_a_coded_allocation_is_coded_by_the_loss_of_the_model_that_holds_it() -> None:
    by_loss, alike, ids = Scaled(), Scaled(), draw_ids(9)
    before = by_loss(ids).detach()
    by_loss.tables.finish(by_loss, batches(), losses)
    alike.tables.model.finish()  # as if all rows and coordinates were equally important
    errors = [(model.eval()(ids) - before).square().mean().item() for model in (by_loss, alike)]
    assert 0 < errors[0] < errors[1] / 2
    assert by_loss.tables.cost().bytes <= 4000 < 4 * DIM * SCHEMA.num_rows / 7


def test_a_coded_allocation_asks_for_what_it_needs_and_for_first_order_weights_that_it_does_not_hold() -> None:
    model = trained(derived("coded"))
    with pytest.raises(
        ValueError, match=r"coded codes the tables by the loss .* call finish\(model, batches, losses\)"
    ):
        model.tables.finish()
    with pytest.raises(ValueError, match="call finish first"):
        model.tables.served()
    with pytest.raises(ValueError, match="do not hold first-order weights"):
        Own(derived("coded"), first_order=True)


def test_the_calibration_counts_lookups_and_takes_the_gradients_of_the_losses() -> None:
    model = trained(MIXED).eval()
    calibration = OwnCalibration(model.tables.model, model, batches(), losses)
    ids = torch.cat(batches())
    counts = torch.bincount(ids[:, 0].long(), minlength=700) / len(ids)
    torch.testing.assert_close(calibration.weights()[:700], counts.float())
    bags, tags = (ids[:, 3:] != PADDING).sum(1, keepdim=True), ids[:, 3:]
    of_five = ((tags == 5) / bags).square().sum() / len(ids)
    torch.testing.assert_close(calibration.weights()[700 + 150 + 3 + 5], of_five)
    vectors = by_hand(model.tables, draw_ids()).detach().requires_grad_()
    logits = model.mlp(vectors.flatten(1))[:, 0]
    loss = binary_cross_entropy_with_logits(logits, labels_of(draw_ids()), reduction="sum")
    (expected,) = torch.autograd.grad(loss, vectors)
    torch.testing.assert_close(next(iter(calibration.gradients())), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "there are no batches"),
        (iter(batches()), "read twice"),
        ("mean", r"the loss of each row, \(B,\), got the shape \(\)"),
        ("other", "does not call these tables"),
    ],
)
def test_batches_and_losses_that_are_of_no_use_are_refused(
    given: list[Tensor] | Iterator[Tensor] | str, message: str
) -> None:
    model = Own(derived("coded"))
    asked = {
        "mean": lambda model, ids: losses(model, ids).mean(),
        "other": lambda model, ids: torch.zeros(len(ids), requires_grad=True),
    }
    parts = (batches(), asked[given]) if isinstance(given, str) else (given, losses)
    with pytest.raises(ValueError, match=message):
        model.tables.finish(model, *parts)
    assert model.training


# --- wrong ids and arguments


@pytest.mark.parametrize(
    ("slot", "value", "message"),
    [
        (0, 700, "ids of field 'user' must be 0 to 699, got 700"),
        (1, -1, "ids of field 'item' must be 0 to 149, got -1"),
        (4, 60, "ids of field 'tags' must be 0 to 59, or -1 in unused slots, got 60"),
        (4, -2, "ids of field 'tags' must be 0 to 59, or -1 in unused slots, got -2"),
    ],
)
def test_an_id_that_its_field_does_not_have_is_refused(slot: int, value: int, message: str) -> None:
    ids = draw_ids().clone()
    ids[5, slot] = value
    with pytest.raises(ValueError, match=re.escape(message)):
        Tables(SCHEMA, DIM, MIXED)(ids)


@pytest.mark.parametrize("ids", [draw_ids().float(), draw_ids()[:, :5], draw_ids()[0], draw_ids().short()])
def test_ids_of_another_shape_or_type_are_refused(ids: Tensor) -> None:
    with pytest.raises(ValueError, match=r"ids must be int32 or int64 of the shape \(B, 6\), got"):
        Tables(SCHEMA, DIM, MIXED)(ids)


def test_an_empty_batch_has_no_vectors() -> None:
    assert Tables(SCHEMA, DIM, MIXED)(draw_ids()[:0]).shape == (0, 4, DIM)


@pytest.mark.parametrize("dim", [0, -1, 8.0, True])
def test_a_dim_that_is_no_size_is_refused(dim: float) -> None:
    with pytest.raises(ValueError, match="dim must be a whole number of at least 1, got"):
        Tables(SCHEMA, dim, MIXED)  # type: ignore[arg-type]


def test_an_allocation_of_other_fields_is_refused() -> None:
    schema = Schema((Field("user", 7), Field("city", 3)))
    with pytest.raises(ValueError, match="the schema's fields are"):
        Tables(schema, DIM, MIXED)


# --- the package


def test_the_example_in_the_docstring_is_true() -> None:
    result = doctest.testmod(tables_module)
    assert result.attempted >= 9 and result.failed == 0


def test_every_public_name_is_there_and_says_what_it_is() -> None:
    assert sorted(api.__all__) == api.__all__ or set(api.__all__) <= set(dir(api))
    for name in api.__all__:
        made = getattr(api, name)
        assert isinstance(made, int) or made.__doc__, name
