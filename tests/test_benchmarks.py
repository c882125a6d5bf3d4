"""What benchmarks compare computes the same, and what they say follows from what they measured."""

import copy

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from benchmarks import models, shapes, supernets, timing
from pipeline.schema import Field, Schema

SCHEMA = Schema((Field("a", 7), Field("b", 5), Field("c", 3)))
CANDIDATES, DIM, BATCH = (1, 2, 4), 4, 16


@pytest.fixture
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("_double")
def test_stacked_and_written_out_supernets_have_the_folded_ones_outputs_and_gradients() -> None:
    torch.manual_seed(0)
    drawn = [(ids, labels.double()) for ids, labels in shapes.batches(SCHEMA, BATCH, 3)]
    searched = models.searched(SCHEMA, models.split(drawn), DIM, CANDIDATES, BATCH)
    folded = searched.model
    with torch.no_grad():
        for weight in folded.parameters():
            weight.add_(0.5 * torch.randn_like(weight))
    stacked = supernets.stack(copy.deepcopy(searched)).model
    written_out = supernets.WrittenOut(folded)
    for ids, labels in drawn:
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
    found = {
        "logits": embedding.selection.logits.grad,
        "table": embedding.mixture.table.weight.grad.to_dense(),
        "first order": model.backbone.first_order.table.weight.grad.to_dense(),
        "gain": embedding.mixture.gain.grad[:, 0, 0],
        "mlp": mlp[0].weight.grad,
    }
    for f in range(len(SCHEMA)):
        for n, d in enumerate(CANDIDATES):
            found[f"map {f} {n}"] = embedding.mixture.maps.grad[f, n, :d].T
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


def test_a_step_of_the_written_out_supernet_trains_every_weight_and_leaves_the_architecture() -> None:
    torch.manual_seed(0)
    drawn = shapes.batches(SCHEMA, 64, 1)
    written_out = supernets.WrittenOut(models.searched(SCHEMA, models.split(drawn), DIM, CANDIDATES, 64).model)
    before = {name: weight.detach().clone() for name, weight in written_out.named_parameters()}
    written_out.weight_step(drawn[0], written_out.optimizer())
    unmoved = {name for name, weight in written_out.named_parameters() if torch.equal(weight, before[name])}
    assert unmoved == {"selection.logits"}


def test_a_target_that_was_not_measured_is_neither_met_nor_missed() -> None:
    assert timing.target("speed", None, at_least=5)["met"] is None
    assert timing.target("speed", 5.0, at_least=5)["met"] is True
    assert timing.target("size", 2.0, at_most=1.5)["met"] is False
