"""What every backbone must hold, and each against its paper's equation, written with loops over rows and fields."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.allocation.allocation import Allocation
from pipeline.data.schema import Field, Schema
from pipeline.embeddings.batch import Lookup
from pipeline.experiment.experiment import suitable
from pipeline.experiment.method import build
from pipeline.models.layers import MLP, FirstOrder
from pipeline.models.model import assemble
from pipeline.serving.served import Served
from pipeline.workflow.plug import plug
from pipeline.workflow.validation import checked_options
from tests.contracts import (
    SMALL_BATCH,
    SMALL_LOOKUP,
    assert_equal_gradients,
    assert_every_parameter_has_a_gradient,
    dense,
    draw_embedded,
    make_backbone,
    small_ids,
)

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


def first_order(backbone: nn.Module, ids: list[int]) -> Tensor:
    total, start = backbone.first_order.bias, 0
    for field, value in zip(FIELDS, ids, strict=False):
        total = total + backbone.first_order.table.weight[start + value, 0]
        start += field.cardinality
    return total


def fm(backbone: nn.Module, ids: list[int], row: Tensor) -> Tensor:
    total = first_order(backbone, ids)
    for i in range(len(row)):
        for j in range(i + 1, len(row)):
            total = total + row[i] @ row[j]
    return total


def wide_deep(backbone: nn.Module, ids: list[int], row: Tensor) -> Tensor:
    return first_order(backbone, ids) + through(backbone.mlp, torch.cat([*row]))


def deepfm(backbone: nn.Module, ids: list[int], row: Tensor) -> Tensor:
    return fm(backbone, ids, row) + through(backbone.mlp, torch.cat([*row]))


def nfm(backbone: nn.Module, ids: list[int], row: Tensor) -> Tensor:
    pooled = torch.zeros(DIM, dtype=row.dtype)
    for i in range(len(row)):
        for j in range(i + 1, len(row)):
            pooled = pooled + row[i] * row[j]
    return first_order(backbone, ids) + through(backbone.mlp, normalised(pooled, backbone.regularised[0]))


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
    (fm, {}),
    (wide_deep, {"hidden": (6, 5)}),
    (deepfm, {"hidden": (6, 5)}),
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


def trained(name: str, schema: Schema, options: dict[str, Any]) -> nn.Module:
    """A backbone in float64, as after training: no parameter and no statistic is as at the start."""
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


@pytest.mark.parametrize("fields", [1, 4])
@pytest.mark.parametrize(("equation", "options"), FORMS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_a_backbone_is_its_paper_s_equation_and_so_are_its_gradients(
    equation: Callable[[nn.Module, list[int], Tensor], Tensor], options: dict[str, Any], fields: int
) -> None:
    schema = Schema(FIELDS[:fields])
    backbone = trained(equation.__name__, schema, options)
    embedded = torch.randn(len(IDS), fields, DIM, dtype=torch.float64, requires_grad=True)
    ids = IDS[:, :fields]
    given = backbone(Lookup(schema)(ids), embedded)
    plain = torch.stack([equation(backbone, ids[b].tolist(), embedded[b]) for b in range(len(IDS))])
    torch.testing.assert_close(given, plain)
    weight = torch.randn(len(IDS), dtype=torch.float64)
    inputs = [embedded, *backbone.parameters()]
    assert_equal_gradients((given * weight).sum(), (plain * weight).sum(), inputs)


# --- every backbone in the folder


BACKBONES = suitable(interactions=False)


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_gives_one_logit_a_row_for_any_number_of_rows(name: str) -> None:
    backbone, lookup = make_backbone(name), SMALL_LOOKUP
    assert backbone(lookup(small_ids()), draw_embedded()).shape == (SMALL_BATCH,)
    backbone.eval()
    for rows in (1, 2, SMALL_BATCH):
        assert backbone(lookup(small_ids()[:rows]), draw_embedded()[:rows]).shape == (rows,)


@pytest.mark.parametrize("name", BACKBONES)
def test_rows_of_a_batch_do_not_affect_each_other_in_a_backbone(name: str) -> None:
    backbone = make_backbone(name).eval()
    ids, embedded = small_ids(), draw_embedded()
    together = backbone(SMALL_LOOKUP(ids), embedded)
    for row in range(5):
        alone = backbone(SMALL_LOOKUP(ids[row : row + 1]), embedded[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], rtol=1e-5, atol=1e-5)
    assert len(torch.unique(together)) > SMALL_BATCH // 2


@pytest.mark.parametrize("name", BACKBONES)
def test_every_parameter_of_a_backbone_gets_a_gradient_and_so_does_every_field(name: str) -> None:
    backbone, embedded = make_backbone(name), draw_embedded().requires_grad_()
    weight = torch.randn(SMALL_BATCH, generator=torch.Generator().manual_seed(4))
    (backbone(SMALL_LOOKUP(small_ids()), embedded) * weight).sum().backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())
    backbone.eval().zero_grad()  # in training, BatchNorm cancels the bias before it
    (backbone(SMALL_LOOKUP(small_ids()), embedded) * weight).sum().backward()
    assert_every_parameter_has_a_gradient(backbone)
    assert bool(dense(embedded.grad).abs().sum((0, 2)).all())


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_gives_logits_and_not_probabilities(name: str) -> None:
    logits = make_backbone(name).eval()(SMALL_LOOKUP(small_ids()), 5 * draw_embedded()).detach()
    assert float(logits.min()) < 0 and float(logits.max()) > 1


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_uses_the_embedding_and_uses_ids_only_for_its_first_order(name: str) -> None:
    backbone = make_backbone(name).eval()
    logits = backbone(SMALL_LOOKUP(small_ids()), draw_embedded())
    assert not torch.allclose(logits, backbone(SMALL_LOOKUP(small_ids()), 2 * draw_embedded()))
    uses_ids = not torch.equal(logits, backbone(SMALL_LOOKUP(small_ids(1)), draw_embedded()))
    assert uses_ids == any(isinstance(module, FirstOrder) for module in backbone.modules())


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_trains_and_is_served_if_only_one_field_is_kept(name: str, tmp_path: Path) -> None:
    dims = {"user": 0, "item": 2, "city": 0, "hour": 0}
    torch.manual_seed(0)
    model = assemble(Schema(FIELDS), DIM, Allocation("autodim", dims), build, plug("backbones", name).Backbone)
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


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_s_options_are_those_of_its_signature_and_all_have_a_default(name: str) -> None:
    backbone = plug("backbones", name).Backbone
    first, second, *options = inspect.signature(backbone).parameters.values()
    assert (first.name, second.name) == ("schema", "dim")
    for option in options:
        assert option.kind is option.KEYWORD_ONLY and option.default is not option.empty, option
    defaults = {option.name: option.default for option in options}
    assert checked_options([backbone], defaults, "here") == defaults
    with pytest.raises(ValueError, match="here: there is no 'nope'"):
        checked_options([backbone], {"nope": 1}, "here")


def test_options_of_params_yaml_make_a_backbone() -> None:
    schema = Schema(FIELDS)
    for name, options in (
        ("nfm", {"hidden": [8], "dropout": 0.5}),
        ("ipnn", {"hidden": [8, 8, 8]}),
        ("autoint", {"layers": 1, "heads": 4, "attention_dim": 8}),
        ("dcn_v2", {"structure": "parallel", "layers": 1, "rank": 4}),
        ("dcn_v2", {"rank": None}),
    ):
        backbone = plug("backbones", name).Backbone
        made = backbone(schema, DIM, **checked_options([backbone], options, "params.yaml: backbone.options"))
        assert made.eval()(Lookup(schema)(IDS), torch.ones(3, 4, DIM)).shape == (3,), name


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("autoint", {"hidden": [8]}, "there is no 'hidden'.*; valid are layers, heads, attention_dim"),
        ("autoint", {"heads": 0}, "heads must be a whole number of at least 1, got 0"),
        ("autoint", {"layers": 1.5}, "layers must be a whole number of at least 1 and at most 100, got 1.5"),
        ("dcn_v2", {"structure": "both"}, "structure must be one of parallel, stacked, got 'both'"),
        ("dcn_v2", {"rank": 0}, "rank must be a whole number of at least 1 or null, got 0"),
        ("ipnn", {"hidden": 128}, "hidden must be a list of whole numbers of at least 1, got 128"),
        ("nfm", {"dropout": 1.0}, "dropout must be a number of at least 0 and below 1, got 1.0"),
    ],
)
def test_wrong_options_are_refused_by_name(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"params.yaml: backbone.options: {message}"):
        checked_options([plug("backbones", name).Backbone], options, "params.yaml: backbone.options")
