"""The layers of backbones against their equations written out."""

import pytest
import torch
from torch import nn

from pipeline.data.schema import PADDING, Field, Schema
from pipeline.embeddings.batch import Lookup
from pipeline.models.layers import MLP, FirstOrder, bi_interaction, inner_products, second_order
from tests.contracts import assert_equal_gradients

SCHEMA = Schema((Field("user", 7), Field("tags", 6, width=3), Field("item", 5)))
IDS = torch.tensor([[1, 2, 5, PADDING, 3], [6, 0, PADDING, PADDING, 4], [0, 1, 2, 3, 0]], dtype=torch.int32)


def first_order(layer: FirstOrder) -> list[float]:
    """The bias plus each field's weight; the weights of a bag are averaged."""
    w, bias = layer.table.weight[:, 0].tolist(), float(layer.bias.detach())
    return [
        bias + w[1] + (w[7 + 2] + w[7 + 5]) / 2 + w[13 + 3],
        bias + w[6] + w[7 + 0] + w[13 + 4],
        bias + w[0] + (w[7 + 1] + w[7 + 2] + w[7 + 3]) / 3 + w[13 + 0],
    ]


def interactions(embedded: torch.Tensor) -> torch.Tensor:
    """Rendle 2010, eq. 1: every pair of fields once."""
    fields = embedded.shape[1]
    return torch.stack([sum(row[i] @ row[j] for i in range(fields) for j in range(i + 1, fields)) for row in embedded])


def trained(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    return module.eval()


def test_the_first_order_term_is_a_bias_and_one_weight_per_field_averaged_within_a_bag() -> None:
    layer = FirstOrder(SCHEMA)
    assert not bool(layer(Lookup(SCHEMA)(IDS)).any())  # it starts at zero
    trained(layer)
    torch.testing.assert_close(layer(Lookup(SCHEMA)(IDS)), torch.tensor(first_order(layer)))


def test_the_second_order_term_is_the_sum_over_all_pairs_and_so_is_its_gradient() -> None:
    torch.manual_seed(1)
    embedded = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(second_order(embedded), interactions(embedded))
    weight = torch.randn(3, dtype=torch.float64)
    ours, theirs = ((term(embedded) * weight).sum() for term in (second_order, interactions))
    assert_equal_gradients(ours, theirs, [embedded])
    assert torch.autograd.gradcheck(second_order, (embedded,))
    assert not bool(second_order(embedded[:, :1]).abs().max() > 1e-12)  # one field has no pair


def test_bi_interaction_is_the_sum_of_elementwise_products_of_all_pairs_and_its_gradient_is_right() -> None:
    torch.manual_seed(1)
    embedded = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    expected = sum(embedded[:, i] * embedded[:, j] for i in range(4) for j in range(i + 1, 4))
    torch.testing.assert_close(bi_interaction(embedded), expected)
    torch.testing.assert_close(bi_interaction(embedded).sum(1), second_order(embedded))
    assert torch.autograd.gradcheck(bi_interaction, (embedded,))
    assert torch.equal(bi_interaction(embedded[:, :1]), torch.zeros(3, 5, dtype=torch.float64))  # one field has no pair


def test_inner_products_are_those_of_every_pair_once_in_order_and_their_gradient_is_right() -> None:
    torch.manual_seed(1)
    embedded = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    pairs = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    expected = torch.stack([(embedded[:, i] * embedded[:, j]).sum(1) for i, j in pairs], 1)
    torch.testing.assert_close(inner_products(embedded), expected)
    assert torch.autograd.gradcheck(inner_products, (embedded,))
    alone = embedded[:, :1].detach().requires_grad_()
    none = inner_products(alone)
    none.sum().backward()
    assert none.shape == (3, 0) and torch.equal(alone.grad, torch.zeros_like(alone))


def test_an_mlp_may_have_no_hidden_layer_and_keeps_a_batch_of_one() -> None:
    assert MLP(4, (), 0.0)(torch.randn(1, 4)).shape == (1,)
    assert MLP(4, (3, 2), 0.5).eval()(torch.randn(1, 4)).shape == (1,)


def test_an_mlp_refuses_empty_layers_and_wrong_dropout() -> None:
    for hidden, dropout in (((0,), 0.2), ((8, -1), 0.2), ((8,), 1.0), ((8,), -0.1)):
        with pytest.raises(ValueError, match=r"hidden widths of an MLP must be at least 1, .* got hidden=\("):
            MLP(4, hidden, dropout)


@pytest.mark.parametrize("p", [0.2, 0.5])
def test_dropout_keeps_a_number_with_its_probability_and_scales_it(p: float) -> None:
    dropout = MLP(4, (3,), p)[3]
    values = torch.full((401, 501), 2.0, requires_grad=True)  # not a multiple of the 4 numbers that a word serves
    torch.manual_seed(0)
    kept = dropout(values)
    share = float((kept != 0).float().mean())
    assert share == pytest.approx(1 - p, abs=5 * (p * (1 - p) / values.numel()) ** 0.5)
    torch.testing.assert_close(kept[kept != 0], torch.full_like(kept[kept != 0], 2 / (1 - p)), rtol=1e-4, atol=0)
    rows, columns = (kept != 0).float().mean(1), (kept != 0).float().mean(0)
    assert float(rows.std()) < 0.03 and float(columns.std()) < 0.03  # no stripes
    kept.sum().backward()
    torch.testing.assert_close(values.grad, kept.detach() / 2)
    torch.manual_seed(0)
    assert torch.equal(dropout(values), kept) and not torch.equal(dropout(values), kept)
    assert torch.equal(dropout.eval()(values), values)


def test_dropout_rounds_each_number_and_not_the_factor_of_all() -> None:
    values = torch.ones(1000, 1000, dtype=torch.bfloat16).uniform_(0.5, 1.5)
    torch.manual_seed(0)
    kept = MLP(4, (3,), 0.1)[3](values)
    torch.manual_seed(0)
    exact = MLP(4, (3,), 0.1)[3](values.float())
    assert kept.dtype == torch.bfloat16 and torch.equal(kept, exact.bfloat16())
    assert float(kept.float().mean()) == pytest.approx(float(exact.mean()), rel=2e-4)


def test_dropout_of_nothing_changes_nothing() -> None:
    values = torch.randn(5, 7)
    assert torch.equal(MLP(4, (3,), 0.0)[3](values), values)
