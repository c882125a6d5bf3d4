"""The backbone of sessions: its equation written with loops, and what every backbone must hold."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline.allocation.allocation import Allocation
from pipeline.backbones.session import Backbone
from pipeline.data.schema import PADDING, Field, Schema
from pipeline.embeddings.batch import Lookup
from pipeline.experiment.experiment import suitable
from pipeline.experiment.method import build
from pipeline.models.dense import packed, round_dense, unpack
from pipeline.models.model import assemble
from pipeline.scoring.graph import Graph
from pipeline.serving.served import Served
from tests.contracts import assert_equal_gradients, assert_every_parameter_has_a_gradient, randomised

FIELDS = (Field("shown", 5), Field("item", 7), Field("page", 3), Field("history", 6, width=3))
SCHEMA, DIM = Schema(FIELDS), 3
IDS = torch.tensor([[1, 4, 0, 3, 2, PADDING], [4, 0, 2, 1, PADDING, PADDING], [0, 6, 1, 5, 4, 3]], dtype=torch.int32)


def trained(schema: Schema = SCHEMA) -> Backbone:
    torch.manual_seed(0)
    backbone = randomised(Backbone(schema, DIM, hidden=(6, 5))).eval()
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return backbone


def plain(backbone: Backbone, vectors: dict[str, Tensor]) -> Tensor:
    """The logits (4,) of the vectors of a row, by field."""
    products = [own * vectors["item"] for name, own in vectors.items() if name != "item" and "item" in vectors]
    x = torch.cat([*vectors.values(), *products])
    *hidden, output, _ = backbone.mlp
    for linear, norm in zip(hidden[::4], hidden[1::4], strict=True):
        x = linear.weight @ x + linear.bias
        x = torch.relu((x - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias)
    return output.weight @ x + output.bias


@pytest.mark.parametrize("names", [("shown", "item", "page", "history"), ("item",), ("page", "history")])
def test_it_is_its_equation_and_so_are_its_gradients(names: tuple[str, ...]) -> None:
    schema = SCHEMA.subset(names)
    backbone = trained(schema).double()
    ids = IDS[:, SCHEMA.slots_of(names)]
    embedded = torch.randn(3, len(names), DIM, dtype=torch.float64, requires_grad=True)
    given = backbone(Lookup(schema)(ids), embedded)
    rows = [dict(zip(names, row, strict=True)) for row in embedded]
    expected = torch.stack([plain(backbone, row) for row in rows])
    torch.testing.assert_close(given, expected)
    weight = torch.randn(3, 4, dtype=torch.float64)
    assert_equal_gradients((given * weight).sum(), (expected * weight).sum(), [embedded, *backbone.parameters()])


def test_every_parameter_gets_a_gradient() -> None:
    backbone = trained()
    (backbone(Lookup(SCHEMA)(IDS), torch.randn(3, 4, DIM)) * torch.randn(3, 4)).sum().backward()
    assert_every_parameter_has_a_gradient(backbone)


def test_it_is_the_backbone_with_four_outputs_for_rows_with_labels() -> None:
    assert suitable(interactions=False, outputs=4) == ["session"] and "session" not in suitable(interactions=False)


@pytest.mark.parametrize("dims", [{"shown": 2, "item": 3, "page": 1, "history": 2}, {"shown": 3, "history": 2}])
def test_it_is_served_and_exported_as_it_was_trained(dims: dict[str, int], tmp_path: Path) -> None:
    torch.manual_seed(0)
    allocation = Allocation("autodim", dict.fromkeys(SCHEMA.names, 0) | dims)
    model = assemble(SCHEMA, DIM, allocation, build, Backbone, {"hidden": (6, 5)})
    model(torch.cat([IDS, IDS.flip(0)])).square().sum().backward()
    model.eval()
    Served.of(model).save(tmp_path / "model.safetensors")
    served = Served.load(tmp_path / "model.safetensors")
    with torch.no_grad():
        expected = model(IDS)
        torch.testing.assert_close(served(IDS), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(served(IDS[:1]), expected[:1], rtol=1e-5, atol=1e-6)
        graph = Graph(model, lambda logits: logits.softmax(1))
        torch.testing.assert_close(graph(IDS.long()), expected.softmax(1), rtol=1e-5, atol=1e-6)


def test_its_packed_tensors_are_enough_to_serve_it() -> None:
    backbone, occ, embedded = trained(), Lookup(SCHEMA)(IDS), torch.randn(3, 4, DIM)
    round_dense(backbone, 4)
    tensors, other = packed(backbone), copy.deepcopy(backbone)
    for value in [*other.parameters(), *other.buffers()]:
        if value.is_floating_point():
            value.data.fill_(torch.nan)
    unpack(other, tensors)
    torch.testing.assert_close(other(occ, embedded), backbone(occ, embedded), rtol=1e-4, atol=1e-5)
