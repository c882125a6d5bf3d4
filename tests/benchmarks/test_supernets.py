"""The forms of the supernet that benchmarks compare compute the same function."""

from collections.abc import Iterator

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from benchmarks import models, shapes, supernets
from pipeline.data.batches import Batch
from pipeline.data.schema import Field, Schema

SCHEMA = Schema((Field("a", 7), Field("b", 5), Field("c", 3)))
CANDIDATES, DIM, BATCH = (1, 2, 4), 4, 16


@pytest.fixture
def _double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("_double")
def test_stacked_and_written_out_supernets_have_the_outputs_and_gradients_of_the_folded_one() -> None:
    torch.manual_seed(0)
    drawn = [Batch(batch.ids, batch.labels.double()) for batch in shapes.draw_batches(SCHEMA, BATCH, 3)]
    searched, other = (models.searched(SCHEMA, models.split(drawn), DIM, CANDIDATES, BATCH) for _ in range(2))
    folded = searched.model
    with torch.no_grad():
        for weight in folded.parameters():
            weight.add_(0.5 * torch.randn_like(weight))
    other.model.load_state_dict(folded.state_dict())
    stacked = supernets.stack(other).model
    written_out = supernets.WrittenOut(folded)
    for ids, labels, _ in drawn:
        outputs = {}
        for model in (folded, stacked, written_out):
            torch.manual_seed(1)  # of the Gumbel noise and the dropout
            model.zero_grad()
            outputs[model] = model(ids)
            binary_cross_entropy_with_logits(outputs[model], labels).backward()
        ours = gradients(folded)
        assert all(gradient.abs().max() > 1e-6 for gradient in ours.values())
        for other in (gradients(stacked), gradients_written_out(written_out)):
            assert other.keys() == ours.keys()
            for name, gradient in other.items():
                close = torch.allclose(gradient, ours[name], atol=1e-10, rtol=1e-8)
                assert close, f"{name}: {(gradient - ours[name]).abs().max()}"
        for model in (stacked, written_out):
            torch.testing.assert_close(outputs[model], outputs[folded], atol=1e-10, rtol=1e-8)


def gradients(model) -> dict[str, torch.Tensor]:
    embedding, mlp = model.embedding, model.backbone.mlp
    mixture = getattr(embedding, "mixture", embedding)  # a stacked supernet has the parameters itself
    found = {
        "logits": embedding.selection.logits.grad,
        "table": mixture.table.weight.grad.to_dense(),
        "first order": model.backbone.first_order.table.weight.grad.to_dense(),
        "gain": mixture.gain.grad[:, 0, 0],
        "mlp": mlp[0].weight.grad,
    }
    for f in range(len(SCHEMA)):
        for n, d in enumerate(CANDIDATES):
            found[f"map {f} {n}"] = mixture.maps.grad[f, n, :d].T
    return found


def gradients_written_out(model) -> dict[str, torch.Tensor]:
    found = {
        "logits": model.selection.logits.grad,
        "table": torch.cat([table.weight.grad for table in model.tables]),
        "first order": model.backbone.first_order.table.weight.grad,
        "gain": model.gain.grad,
        "mlp": model.backbone.mlp[0].weight.grad,
    }
    for f in range(len(SCHEMA)):
        for n in range(len(CANDIDATES)):
            found[f"map {f} {n}"] = model.maps[f][n].weight.grad
    return found


@pytest.mark.parametrize("form", ["written out", "stacked"])
def test_a_step_trains_every_weight_and_leaves_the_architecture(form: str) -> None:
    torch.manual_seed(0)
    drawn = shapes.draw_batches(SCHEMA, 64, 1)
    searched = models.searched(SCHEMA, models.split(drawn), DIM, CANDIDATES, 64)
    module = supernets.WrittenOut(searched.model) if form == "written out" else supernets.stack(searched)
    before = {name: weight.detach().clone() for name, weight in module.named_parameters()}
    if isinstance(module, supernets.WrittenOut):
        module.weight_step(drawn[0], module.optimizer())
    else:
        models.weight_steps(module, drawn)(0)
    unmoved = {name for name, weight in module.named_parameters() if torch.equal(weight, before[name])}
    assert len(unmoved) == 1 and unmoved.pop().endswith("selection.logits")


def test_only_autodim_s_supernet_has_these_forms() -> None:
    drawn = shapes.draw_batches(SCHEMA, BATCH, 1)
    with pytest.raises(TypeError, match="only AutoDim's supernet has these forms, got MixedTables"):
        supernets.WrittenOut(models.plain(SCHEMA, models.split(drawn), DIM).model)
