"""A model is what its allocation says: dropped fields are no part of it."""

import numpy as np
import pytest
import torch

from pipeline.allocation.allocation import Allocation
from pipeline.backbones import deepfm, fm
from pipeline.data.schema import Field, Schema
from pipeline.data.split import Split
from pipeline.experiment.method import build
from pipeline.models.model import assemble, outputs

SCHEMA = Schema((Field("user", 7), Field("tags", 6, width=3), Field("item", 5), Field("age", 3)))
IDS = torch.tensor([[1, 2, 5, -1, 3, 2], [6, 0, -1, -1, 4, 0], [0, 1, 2, 3, 0, 1]], dtype=torch.int32)


def model(**dims: int):
    torch.manual_seed(0)
    made = assemble(SCHEMA, 4, Allocation("autodim", dims), build, deepfm.Backbone, {"hidden": (5,)})
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_()
    return made.eval()


def test_a_field_of_dimension_0_is_in_neither_embedding_nor_backbone() -> None:
    kept = model(user=4, tags=0, item=2, age=1)
    assert kept.embedding(kept.lookup(IDS[:, [0, 4, 5]])).shape == (3, 3, 4)
    assert kept.backbone.first_order.table.weight.shape == (7 + 5 + 3, 1)
    assert kept.backbone.mlp[0].in_features == 3 * 4
    assert sum(table.weight.shape[0] for table in kept.embedding.tables.values()) == 7 + 5 + 3


@pytest.mark.parametrize(
    ("dropped", "slots"), [("tags", [1, 2, 3]), ("user", [0]), ("age", [5])], ids=["bag", "first", "last"]
)
def test_ids_of_a_dropped_field_change_nothing_and_those_of_every_other_do(dropped: str, slots: list[int]) -> None:
    kept = model(**{name: 0 if name == dropped else 2 for name in SCHEMA.names})
    for slot in range(SCHEMA.num_slots):
        changed = IDS.clone()
        changed[0, slot] = 0 if int(changed[0, slot]) != 0 else 1
        same = torch.equal(kept(IDS)[0], kept(changed)[0])
        assert same == (slot in slots), f"slot {slot}"


def test_a_model_with_dropped_fields_is_the_model_of_the_other_fields() -> None:
    kept = model(user=4, tags=0, item=2, age=1)
    alone = assemble(
        SCHEMA.subset(["user", "item", "age"]),
        4,
        Allocation("autodim", {"user": 4, "item": 2, "age": 1}),
        build,
        deepfm.Backbone,
        {"hidden": (5,)},
    ).eval()
    alone.load_state_dict(kept.state_dict())
    assert torch.equal(kept(IDS), alone(IDS[:, [0, 4, 5]]))


@pytest.mark.parametrize(
    ("dims", "named"),
    [
        ({"user": 4, "tags": 2, "item": 2}, "no dim is given for .'age'."),
        ({"user": 4, "tags": 2, "item": 2, "age": 1, "zip": 4}, "dims are given for .'zip'."),
    ],
)
def test_an_allocation_for_another_schema_is_refused(dims: dict[str, int], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        assemble(SCHEMA, 4, Allocation("autodim", dims), build, fm.Backbone)


@pytest.mark.parametrize("training", [True, False])
def test_outputs_are_those_of_evaluation_mode_and_the_mode_stays_as_it_was(training: bool) -> None:
    made = model(user=4, tags=2, item=2, age=1)
    made.backbone.mlp[1].running_mean.normal_()
    expected = made(IDS).detach().numpy()
    rows = Split((IDS[:2].numpy(), IDS[2:].numpy()), (np.zeros(2, np.uint8), np.zeros(1, np.uint8)))
    before = {name: value.clone() for name, value in made.state_dict().items()}
    made.train(training)
    for batch_size in (1, 2, 100):
        logits = outputs(made, rows, batch_size)
        np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
        assert logits.dtype == np.float32 and not isinstance(logits, torch.Tensor)
    assert made.training is training and made.backbone.mlp.training is training
    assert all(torch.equal(before[name], value) for name, value in made.state_dict().items())
