"""Coded tables are served from their bits, and answer as the trained model does."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.coding.choice import choose
from pipeline.data.schema import PADDING, UNKNOWN, Field, Schema
from pipeline.embeddings.batch import Occurrences
from pipeline.embeddings.coded import CodedTables, Moments, predictions
from pipeline.embeddings.cost import cost
from pipeline.experiment.experiment import suitable
from pipeline.models.layers import FirstOrder
from pipeline.models.model import Model, first_order_of
from pipeline.serving.latency import forms
from pipeline.serving.served import Served
from pipeline.serving.tables import FEW
from pipeline.workflow.plug import plug

PLAIN = Schema((Field("user", 700), Field("item", 500), Field("age", 8), Field("city", 300), Field("one", 1)))
BAGS = Schema((Field("user", 700), Field("tags", 400, width=3), Field("age", 8), Field("genres", 20, width=2)))
DIM = 8


def coded(schema: Schema, share: float = 0.3, width: int = DIM + 1) -> CodedTables:
    """Tables with a falling spectrum, coded within a share of their bytes; small fields are coded by rows."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(schema.num_rows, width, generator=generator) @ torch.diag(torch.logspace(0, -1.5, width))
    weights = torch.cat([1 / (1 + torch.arange(int(number)).float()) for number in schema.cardinalities])
    root = torch.randn(len(schema), width, width, generator=generator).double()
    moments = Moments(weights, root @ root.transpose(1, 2))
    table += 0.5  # so that the means matter
    plans = choose(predictions(table, schema, moments), int(share * 4 * table.numel()))
    assert {plan.by_rows for plan in plans} == {True, False}
    return CodedTables.of(table, schema, DIM, plans, moments)


def trained(schema: Schema, backbone: str = "deepfm", share: float = 0.3) -> Model:
    torch.manual_seed(0)
    made = plug("backbones", backbone).Backbone
    width = DIM if first_order_of(made(schema, DIM)) is None else DIM + 1
    model = Model(schema, coded(schema, share, width), made)
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.normal_(std=0.3)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return model.eval()


def draw(schema: Schema, batch: int) -> Tensor:
    """(B, S) int32; every bag holds 0 to all of its slots, and the first row has the unknown id everywhere."""
    rng = np.random.default_rng(batch)
    columns = []
    for field in schema.fields:
        values = rng.integers(field.cardinality, size=(batch, field.width))
        values[0] = UNKNOWN
        filled = rng.integers(0 if field.width > 1 else 1, field.width + 1, size=(batch, 1))
        columns.append(np.where(np.arange(field.width) < filled, values, PADDING))
    return torch.from_numpy(np.concatenate(columns, 1).astype(np.int32))


@pytest.mark.parametrize("schema", [PLAIN, BAGS], ids=["plain", "bags"])
@pytest.mark.parametrize("batch", [1, FEW, FEW + 1, 300])
def test_every_backbone_answers_as_it_was_trained(schema: Schema, batch: int) -> None:
    ids = draw(schema, batch)
    for backbone in suitable(interactions=False):
        model = trained(schema, backbone)
        with torch.no_grad():
            expected = model(ids)
        torch.testing.assert_close(Served.of(model)(ids), expected, rtol=5e-5, atol=2e-5)


class TwoTables(nn.Module):
    """A backbone with a table besides that of the first-order weights, which looks up rows by itself."""

    def __init__(self, schema: Schema, dim: int) -> None:
        super().__init__()
        self.first_order, self.other = FirstOrder(schema), FirstOrder(schema)

    def forward(self, occ: Occurrences, embedded: Tensor) -> Tensor:
        return self.first_order(occ) + self.other(occ).tanh() + embedded.sum((1, 2))


@pytest.mark.parametrize("batch", [1, FEW + 1])
def test_a_backbone_may_look_up_rows_by_itself(batch: int) -> None:
    torch.manual_seed(0)
    model, ids = Model(PLAIN, coded(PLAIN), TwoTables).eval(), draw(PLAIN, batch)
    nn.init.normal_(model.backbone.other.table.weight)
    with torch.no_grad():
        torch.testing.assert_close(Served.of(model)(ids), model(ids), rtol=5e-5, atol=2e-5)


@pytest.mark.parametrize("schema", [PLAIN, BAGS], ids=["plain", "bags"])
@pytest.mark.parametrize("share", [0.08, 0.3, 1.0])
def test_every_row_is_decoded_to_its_vector_in_small_and_in_large_batches(schema: Schema, share: float) -> None:
    model = trained(schema, "autoint", share)  # which takes all vectors multiplied out
    served = Served.of(model)
    given: list[Tensor] = []
    served.backbone.register_forward_pre_hook(lambda _, arguments: given.append(arguments[1]))
    rows = torch.arange(int(schema.cardinalities.max()))[:, None]
    ids = (rows % torch.from_numpy(schema.cardinalities[schema.slot_fields])).int()
    with torch.no_grad():
        expected = model.embedding(model.occurrences(ids))[..., :DIM]
    served(ids)
    torch.testing.assert_close(given.pop(), expected, rtol=1e-5, atol=1e-6)
    for some in ids.split(FEW):
        served(some)
    torch.testing.assert_close(torch.cat(given), expected, rtol=1e-5, atol=1e-6)


def test_a_saved_model_answers_as_before_and_claims_the_bytes_of_the_trained_one(tmp_path: Path) -> None:
    model = trained(BAGS)
    served = Served.of(model)
    served.save(tmp_path / "model.safetensors")
    loaded = Served.load(tmp_path / "model.safetensors")
    for batch in (1, 50):
        ids = draw(BAGS, batch)
        assert torch.equal(loaded(ids), served(ids))
    claimed = cost(model.embedding.packed())
    assert cost(loaded.packed()) == cost(served.packed()) == claimed
    stored = (tmp_path / "model.safetensors").stat().st_size
    backbone = sum(value.nbytes for value in served.backbone.state_dict().values())
    assert claimed.bytes + backbone < stored < claimed.bytes + backbone + 5000


def test_a_dropped_field_is_not_looked_at() -> None:
    kept = BAGS.subset(["user", "tags", "age"])
    model = Model(BAGS, coded(kept), plug("backbones", "deepfm").Backbone, kept=kept).eval()
    served, ids = Served.of(model), draw(BAGS, 20)
    changed = ids.clone()
    changed[:, -2:] = 7
    assert torch.equal(served(ids), served(changed))
    with torch.no_grad():
        torch.testing.assert_close(served(ids), model(ids), rtol=1e-5, atol=1e-5)


def test_coded_tables_have_one_form_and_none_in_int8() -> None:
    model = trained(PLAIN)
    assert list(forms(model)) == ["coded"]
    with pytest.raises(TypeError, match="only an embedding of MixedTables can be served in int8, got CodedTables"):
        Served.of(model, int8=True)


def test_tables_that_are_not_coded_yet_are_refused() -> None:
    model = trained(PLAIN)
    model.embedding = CodedTables(PLAIN, DIM, DIM + 1, model.embedding.plans)
    with pytest.raises(ValueError, match=r"can be served after they are coded; call finish\(\) first"):
        Served.of(model)


def test_a_file_whose_tables_do_not_fit_their_plan_is_named(tmp_path: Path) -> None:
    served = Served.of(trained(PLAIN))
    served.tables.tensors["mean"] = served.tables.tensors["mean"][1:]
    served.save(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors: is not a complete file .*'mean': \(2, 3\)"):
        Served.load(tmp_path / "model.safetensors")
