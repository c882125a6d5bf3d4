"""NFM, IPNN, AutoInt and DCN V2 against their papers' equations, written with loops over rows, fields and heads."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.allocation.allocation import Allocation
from pipeline.data.schema import Field, Schema
from pipeline.embeddings.batch import Lookup
from pipeline.methods import autodim
from pipeline.models.layers import MLP
from pipeline.models.model import CTRModel, assemble
from pipeline.serving.packed import Served
from pipeline.workflow.plug import names, plug
from stages import _model

FIELDS = (Field("user", 7), Field("item", 5), Field("city", 6), Field("hour", 4))
IDS = torch.tensor([[1, 4, 0, 3], [6, 0, 5, 1], [0, 2, 2, 2]], dtype=torch.int32)
DIM = 3


def normalised(x: Tensor, norm: nn.BatchNorm1d) -> Tensor:
    return (x - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias


def through(mlp: MLP, x: Tensor) -> Tensor:
    *hidden, output, _ = mlp
    for linear, norm in zip(hidden[::4], hidden[1::4], strict=True):
        x = torch.relu(normalised(linear.weight @ x + linear.bias, norm))
    return output.weight[0] @ x + output.bias[0]


def nfm(backbone: nn.Module, ids: list[int], row: Tensor) -> Tensor:
    pooled = torch.zeros(DIM, dtype=row.dtype)
    for i in range(len(row)):
        for j in range(i + 1, len(row)):
            pooled = pooled + row[i] * row[j]
    first, start = backbone.first_order.bias, 0
    for field, value in zip(FIELDS, ids, strict=False):
        first = first + backbone.first_order.table.weight[start + value, 0]
        start += field.cardinality
    return first + through(backbone.mlp, normalised(pooled, backbone.regularised[0]))


def ipnn(backbone: nn.Module, ids: list[int], row: Tensor) -> Tensor:
    products = [sum(row[i] * row[j]).view(1) for i in range(len(row)) for j in range(i + 1, len(row))]
    return through(backbone.mlp, torch.cat([*row, *products]))


def autoint(backbone: nn.Module, ids: list[int], row: Tensor) -> Tensor:
    for layer in backbone.interacting:
        width = len(layer.query.weight) // layer.heads
        vectors = []
        for m in range(len(row)):
            mixed = []
            for h in range(layer.heads):
                query, key, value = (
                    part.weight[h * width : (h + 1) * width] for part in (layer.query, layer.key, layer.value)
                )
                closeness = [((query @ row[m]) @ (key @ other)).exp() for other in row]
                shares = [close / sum(closeness) for close in closeness]
                mixed.append(sum(share * (value @ other) for share, other in zip(shares, row, strict=True)))
            vectors.append(torch.relu(torch.cat(mixed) + layer.residual.weight @ row[m]))
        row = torch.stack(vectors)
    return backbone.output.weight[0] @ torch.cat([*row]) + backbone.output.bias[0]


def dcn_v2(backbone: nn.Module, ids: list[int], row: Tensor) -> Tensor:
    first = crossed = torch.cat([*row])
    for cross in backbone.crosses:
        full = isinstance(cross, nn.Linear)
        weight, bias = (cross.weight, cross.bias) if full else (cross[1].weight @ cross[0].weight, cross[1].bias)
        crossed = torch.stack([first[i] * (weight[i] @ crossed + bias[i]) + crossed[i] for i in range(len(first))])
    if backbone.crossed is None:
        return through(backbone.mlp, crossed)
    return backbone.crossed.weight[0] @ crossed + through(backbone.mlp, first)


FORMS: list[tuple[Callable[[nn.Module, list[int], Tensor], Tensor], dict[str, Any]]] = [
    (nfm, {"hidden": (6, 5)}),
    (nfm, {"hidden": ()}),
    (ipnn, {"hidden": (6, 5)}),
    (autoint, {"layers": 1, "heads": 1, "attention_dim": 4}),
    (autoint, {"layers": 3, "heads": 2, "attention_dim": 5}),
    (dcn_v2, {"structure": "stacked", "layers": 3, "hidden": (6, 5)}),
    (dcn_v2, {"structure": "stacked", "hidden": ()}),
    (dcn_v2, {"structure": "parallel", "hidden": (6,)}),
    (dcn_v2, {"structure": "parallel", "rank": 2, "hidden": (6,)}),
]


def randomised(name: str, schema: Schema, options: dict[str, Any]) -> nn.Module:
    """In float64, as after training: no parameter and no statistic is what it was at the start."""
    torch.manual_seed(0)
    backbone = plug("backbones", name).Backbone(schema, DIM, **options).double().eval()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.normal_(std=0.7)
        for module in backbone.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return backbone


@pytest.mark.parametrize("fields", [1, 2, 4])
@pytest.mark.parametrize(("equation", "options"), FORMS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_a_backbone_is_its_paper_s_equation_and_so_are_its_gradients(
    equation: Callable[[nn.Module, list[int], Tensor], Tensor], options: dict[str, Any], fields: int
) -> None:
    schema = Schema(FIELDS[:fields])
    backbone = randomised(equation.__name__, schema, options)
    embedded = torch.randn(len(IDS), fields, DIM, dtype=torch.float64, requires_grad=True)
    ids = IDS[:, :fields]
    given = backbone(Lookup(schema)(ids), embedded)
    plain = torch.stack([equation(backbone, ids[b].tolist(), embedded[b]) for b in range(len(IDS))])
    torch.testing.assert_close(given, plain)
    weight = torch.randn(len(IDS), dtype=torch.float64)
    inputs = [embedded, *backbone.parameters()]
    theirs = torch.autograd.grad((plain * weight).sum(), inputs, materialize_grads=True)
    for one, other in zip(torch.autograd.grad((given * weight).sum(), inputs), theirs, strict=True):
        torch.testing.assert_close(one.to_dense() if one.is_sparse else one, other)


def model_of_one_field(name: str) -> CTRModel:
    dims = {"user": 0, "item": 2, "city": 0, "hour": 0}
    torch.manual_seed(0)
    backbone = plug("backbones", name).Backbone
    return assemble(Schema(FIELDS), DIM, Allocation("autodim", dims), autodim.build, backbone)


@pytest.mark.parametrize("name", names("backbones"))
def test_a_backbone_trains_and_is_served_when_all_fields_but_one_were_dropped(name: str, tmp_path: Path) -> None:
    model = model_of_one_field(name)
    ids = torch.cat([IDS, IDS.flip(0)])
    logits = model(ids)
    (logits * torch.arange(1.0, 7.0)).sum().backward()
    assert logits.shape == (6,)
    assert all(bool(p.grad.to_dense().isfinite().all()) for p in model.parameters() if p.grad is not None)
    model.eval()
    Served.of(model).save(tmp_path / "model.safetensors")
    served = Served.load(tmp_path / "model.safetensors")
    for rows in (1, 6):
        with torch.no_grad():
            torch.testing.assert_close(served(ids[:rows]), model(ids[:rows]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("nfm", {"hidden": [8], "dropout": 0.5}),
        ("ipnn", {"hidden": [8, 8, 8]}),
        ("autoint", {"layers": 1, "heads": 4, "attention_dim": 8}),
        ("dcn_v2", {"structure": "parallel", "layers": 1, "rank": 4}),
        ("dcn_v2", {"rank": None}),
    ],
)
def test_options_of_params_yaml_make_a_backbone(name: str, options: dict[str, Any]) -> None:
    schema = Schema(FIELDS)
    made = _model.backbone({"backbone": {"name": name, "options": options}})
    assert made(schema, DIM, **options).eval()(Lookup(schema)(IDS), torch.ones(3, 4, DIM)).shape == (3,)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("autoint", {"hidden": [8]}, "no option 'hidden'; valid are layers, heads, attention_dim"),
        ("autoint", {"heads": 0}, "'heads' must be a whole number of at least 1, however 0"),
        ("autoint", {"layers": 1.5}, "'layers' must be a whole number of at least 1, however 1.5"),
        ("dcn_v2", {"structure": "both"}, r"'structure' must be one of \['parallel', 'stacked'\], however 'both'"),
        ("dcn_v2", {"rank": 0}, "'rank' must be a whole number of at least 1 or null, however 0"),
        ("ipnn", {"hidden": 128}, "'hidden' must be a list, however 128"),
    ],
)
def test_wrong_options_are_refused_by_name(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"params.yaml: backbone.options: .*{message}"):
        _model.backbone({"backbone": {"name": name, "options": options}})
