"""The architecture step on a quadratic whose hypergradient is known in closed form."""

import pytest
import torch
from torch import nn

from pipeline.backbones.deepfm import Backbone
from pipeline.data.schema import Field, Schema
from pipeline.embeddings.table import Table
from pipeline.methods import autodim
from pipeline.models.model import Model
from pipeline.training.bilevel import architecture_gradient, frozen_statistics
from tests.contracts import problem


@pytest.fixture()
def quadratic():
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    a, c = nn.Parameter(draw(3)), draw(4, 4)
    return nn.Parameter(draw(4)), a, draw(4, 3), c @ c.T, draw(4)


def test_second_order_equals_the_closed_form(quadratic) -> None:
    # L_train = w'H w / 2 - w'M a;  L_arch = |w - t|^2 / 2 + |a|^2 / 2;  w' = w - xi (H w - M a), dw'/da = xi M
    w, a, m, h, t = quadratic
    xi = 0.05
    expected = a.detach() + xi * m.T @ (w.detach() - xi * (h @ w.detach() - m @ a.detach()) - t)
    before = w.detach().clone()
    architecture_gradient(
        lambda: ((w - t).square().sum() + a.square().sum()) / 2,
        lambda: w @ h @ w / 2 - w @ m @ a,
        [a],
        [w],
        xi,
    )
    torch.testing.assert_close(a.grad, expected, atol=1e-9, rtol=1e-9)
    assert torch.equal(w, before) and w.grad is None


def test_first_order_is_the_plain_gradient_and_needs_none_of_the_weights(quadratic) -> None:
    w, a, m, _, t = quadratic
    w.grad = torch.full_like(w, 7.0)
    architecture_gradient(lambda: (w + m @ a - t).square().sum() / 2, lambda: w.sum(), [a], [w])
    torch.testing.assert_close(a.grad, m.T @ (w + m @ a - t).detach())
    assert w.requires_grad and bool((w.grad == 7).all())


def test_random_draws_are_the_same_on_both_sides_of_the_difference(quadratic) -> None:
    w, a, m, _, t = quadratic

    def train_loss():
        return (w * torch.rand(4, dtype=torch.float64)) @ m @ a

    torch.manual_seed(5)
    u = torch.rand(4, dtype=torch.float64)
    moved = w.detach() - 0.1 * u * (m @ a.detach())
    expected = -0.1 * m.T @ (u * (moved - t))
    torch.manual_seed(5)
    architecture_gradient(lambda: (w - t).square().sum() / 2 + 0 * a.sum(), train_loss, [a], [w], 0.1)
    torch.testing.assert_close(a.grad, expected, atol=1e-9, rtol=1e-9)


def test_sparse_rows_move_and_come_back_to_the_bit() -> None:
    torch.manual_seed(0)
    table, a = Table(6, 2).double(), nn.Parameter(torch.randn(2, dtype=torch.float64))
    dense = nn.Parameter(table.weight.detach().clone())
    rows = torch.tensor([1, 4])
    before = table.weight.detach().clone()
    architecture_gradient(
        lambda: (table(rows) * a).square().sum(), lambda: (table(rows) @ a).pow(3).sum(), [a], [table.weight], 0.1
    )
    ours = a.grad.clone()
    architecture_gradient(
        lambda: (dense[rows] * a).square().sum(), lambda: (dense[rows] @ a).pow(3).sum(), [a], [dense], 0.1
    )
    torch.testing.assert_close(ours, a.grad)
    assert torch.equal(table.weight, before)


def test_an_architecture_step_leaves_running_statistics_alone() -> None:
    schema, candidates = Schema((Field("user", 30), Field("tags", 8, width=3))), [[1, 2, 4]] * 2
    model = Model(schema, autodim.find(problem("autodim", schema, 4, candidates)), Backbone)
    before = {name: value.clone() for name, value in model.named_buffers() if "num_batches" not in name}
    ids = torch.randint(0, 8, (40, 4), dtype=torch.int32)
    with frozen_statistics(model):
        model(ids)
    assert all(torch.equal(value, dict(model.named_buffers())[name]) for name, value in before.items())
    model(ids)
    assert not torch.equal(model.embedding.mixture.mean, before["embedding.mixture.mean"])
