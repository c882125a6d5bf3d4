"""What benchmarks compare computes the same, and what they say follows from what they measured."""

import copy
import json

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from benchmarks import gpu, models, scaling, search, shapes, supernets, timing
from pipeline.data.schema import Field, Schema

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


def test_every_step_of_the_search_s_benchmark_runs_and_stands_in_its_table() -> None:
    drawn = shapes.batches(SCHEMA, 64, 2)
    torch.manual_seed(0)
    taken = search._taken(SCHEMA, drawn, rounds=4)
    memory = {
        "plain": {"own": 100.0, "before": 50.0, "peak": 150.0},
        "search": {"own": 110.0, "before": 50.0, "peak": 160.0},
    }
    results = search._results(SCHEMA, drawn, taken, memory)
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    text = search.table(results)
    assert text.startswith("## Search") and all(f"| {name} |" in text for name in taken)
    assert len(taken) == 10 + (search.TORCHFM in taken)
    np.testing.assert_allclose(
        taken["weights + architecture, second order / 10"], taken[search.FOLDED] + taken[search.SECOND] / 10
    )


def test_the_search_s_targets_are_ratios_within_a_round_and_say_what_was_not_measured() -> None:
    plain = np.array([10.0, 20.0, 40.0])
    taken = {
        search.PLAIN: plain,
        search.FOLDED: 1.5 * plain,
        search.LOOPS: np.array([np.nan, 3000.0, np.nan]),
        search.FIRST: plain,
        search.SECOND: 3 * plain,
        search._with_weights(search.FIRST): 1.6 * plain,
        search._with_weights(search.SECOND): 1.8 * plain,
    }
    memory = {"plain": {"own": 100.0}, "search": {"own": 110.0}}
    reached = [(target["reached"], target["met"]) for target in search._targets(taken, memory)]
    both = [(pytest.approx(1.125), True), (3.0, True)]
    assert reached == [(1.5, False), (None, None), (100.0, True), *both, (1.1, True)]
    with_torchfm = search._targets(taken | {search.TORCHFM: 10 * plain}, memory)
    assert with_torchfm[1]["reached"] == pytest.approx(0.15) and with_torchfm[1]["met"] is True


def test_scaling_tells_what_grew_for_each_member_of_an_axis() -> None:
    torch.manual_seed(0)
    members = {values: scaling.Shape(values=values, fields=3, batch=50) for values in (60, 600)}
    entries = scaling._axis(members, rounds=2)
    assert [entry["at"] for entry in entries] == [60, 600]
    assert all(entries[0][kind]["growth"] == 1.0 for kind in scaling.KINDS)
    schema = shapes.criteo(600, 3)
    distinct = [len(np.unique(ids.numpy() + schema.first_rows)) for ids, _ in shapes.batches(schema, 50, 24)]
    assert entries[1]["touched"] == pytest.approx(np.mean(distinct))
    for kind in scaling.KINDS:
        per_row = entries[1][kind]["median"] / entries[1]["touched"]
        assert entries[1][kind]["per 1,000 rows"] == pytest.approx(1000 * per_row)
    results = {"axes": {"values": entries}, "targets": scaling._targets({"values": entries})}
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    assert [target["reached"] for target in results["targets"]] == [
        entries[1][kind]["growth"] for kind in scaling.KINDS
    ]
    assert scaling.table(results).startswith("## Scaling")


def test_every_step_that_a_gpu_is_timed_by_runs_and_stands_in_its_table() -> None:
    torch.manual_seed(0)
    entry = gpu.measure(SCHEMA, 64, rounds=4, device="cpu")
    results = {"gpu": "a GPU", "left out": [], "batches": {64: entry}, "targets": []}
    text = gpu.table(results)
    assert text.startswith("## On a GPU") and all(f"| {name} |" in text for name in entry["steps"])
    assert {gpu.PLAIN, gpu.FOLDED, gpu.FIRST, gpu.SECOND, gpu.LOOPS} < set(entry["steps"])
    assert entry["steps"][gpu.PLAIN]["ratio"] == 1.0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_said_that_nothing_was_measured_on_one() -> None:
    results = gpu.run(quick=True)
    assert results["targets"] == [] and "Not measured: there is no GPU." in gpu.table(results)


def test_a_step_s_time_is_taken_once_all_it_began_is_done() -> None:
    order: list[str] = []
    timing.interleave({"a": lambda i: order.append(f"a{i}")}, rounds=1, warm_up=1, settle=lambda: order.append("done"))
    assert order == ["a0", "done", "a1", "done"]
