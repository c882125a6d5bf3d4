"""The sections that time steps: every step runs, and what the tables say follows from what was measured."""

import json

import numpy as np
import pytest
import torch

from benchmarks import gpu, models, peers, scaling, search, shapes, training
from pipeline.data.schema import Field, Schema

SCHEMA = Schema((Field("a", 7), Field("b", 5), Field("c", 3)))
MEMORY = {
    "plain": {"own": 100.0, "before": 50.0, "peak": 150.0},
    "search": {"own": 110.0, "before": 50.0, "peak": 160.0},
}


def test_the_shape_is_criteo_s_at_any_size() -> None:
    schema = shapes.criteo(1_000_000, 80)
    assert len(schema) == 80 and schema.num_rows == pytest.approx(1_000_000, rel=1e-3)
    assert schema.cardinalities.min() == 2 and schema.cardinalities.max() > 50_000
    (batch,) = shapes.draw_batches(SCHEMA, 2000, 1)
    assert batch.ids.dtype == torch.int32 and (batch.ids.amax(0) == torch.tensor([6, 4, 2])).all()
    assert shapes.describe(SCHEMA, [batch], 4) == "3 fields, 15 values, D = 4, batch 2,000 (15 distinct rows)."
    counts = np.bincount(batch.ids[:, 0])
    assert counts[0] / counts[6] == pytest.approx(7**shapes.EXPONENT, rel=0.3)


def test_every_step_of_the_search_s_section_runs_and_is_in_its_table() -> None:
    drawn = shapes.draw_batches(SCHEMA, 64, 2)
    torch.manual_seed(0)
    taken = search.measure(SCHEMA, drawn, rounds=4)
    results = search.results(SCHEMA, drawn, taken, MEMORY)
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    text = search.table(results)
    assert text.startswith("## Search") and all(f"| {name} |" in text for name in taken)
    assert len(taken) == 10 + (search.TORCHFM in taken)
    np.testing.assert_allclose(
        taken["weights + architecture, second order / 10"], taken[search.FOLDED] + taken[search.SECOND] / 10
    )


def test_the_targets_of_the_search_are_ratios_within_a_round_and_say_what_was_not_measured() -> None:
    plain = np.array([10.0, 20.0, 40.0])
    taken = {
        search.PLAIN: plain,
        search.FOLDED: 1.5 * plain,
        search.LOOPS: np.array([np.nan, 3000.0, np.nan]),
        search.FIRST: plain,
        search.SECOND: 3 * plain,
        search.with_weights(search.FIRST): 1.6 * plain,
        search.with_weights(search.SECOND): 1.8 * plain,
    }
    reached = [(target["reached"], target["met"]) for target in search.targets(taken, MEMORY)]
    both = [(pytest.approx(1.125), True), (3.0, True)]
    assert reached == [(1.5, False), (None, None), (100.0, True), *both, (1.1, True)]
    with_torchfm = search.targets(taken | {search.TORCHFM: 10 * plain}, MEMORY)
    assert with_torchfm[1]["reached"] == pytest.approx(0.15) and with_torchfm[1]["met"] is True


def test_the_targets_of_training_compare_with_the_fastest_library() -> None:
    ratios = {"this project, beside fused": 1.0, "torchfm, as it comes": 9.0, "fuxictr, as it comes": 4.5}
    ratios |= {"this project, beside sparse": 1.0, "torchfm, sparse": 1.6, "fuxictr, fused": 0.8}
    found = training.targets({name: {"ratio": ratio} for name, ratio in ratios.items()})
    assert [(target["reached"], target["met"]) for target in found] == [(9.0, True), (4.5, True), (0.8, False)]
    assert "(fuxictr, as it comes)" in found[1]["what"] and "(fuxictr, fused)" in found[2]["what"]


@pytest.mark.skipif(bool(peers.missing()), reason="needs the libraries that are compared")
@pytest.mark.filterwarnings("ignore")  # of the libraries
def test_every_library_trains_in_every_form_and_through_its_own_loader(tmp_path) -> None:
    drawn = shapes.draw_batches(SCHEMA, 32, 2)
    for make in peers.PEERS:
        for form in peers.FORMS:
            torch.manual_seed(0)
            peer = make(SCHEMA, 4, form)
            step = peer.steps(drawn)
            before = copies(peer)
            step(0)
            assert any(not torch.equal(*pair) for pair in zip(before, peer.model.parameters(), strict=True)), form
        peer = make(SCHEMA, 4, "as it comes")
        ids, labels = (torch.cat([getattr(batch, name) for batch in drawn]).numpy() for name in ("ids", "labels"))
        before = copies(peer)
        peer.epoch(ids, labels, 32, tmp_path)
        assert any(not torch.equal(*pair) for pair in zip(before, peer.model.parameters(), strict=True)), peer.name


def copies(peer) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in peer.model.parameters()]


def test_scaling_tells_what_grew_for_each_member_of_an_axis() -> None:
    torch.manual_seed(0)
    members = {values: scaling.Shape(values=values, fields=3, batch=50) for values in (60, 600)}
    entries = scaling.measure(members, rounds=2)
    assert [entry["at"] for entry in entries] == [60, 600]
    assert all(entries[0][kind]["growth"] == 1.0 for kind in models.KINDS)
    schema = shapes.criteo(600, 3)
    distinct = [len(np.unique(batch.ids.numpy() + schema.first_rows)) for batch in shapes.draw_batches(schema, 50, 24)]
    assert entries[1]["touched"] == pytest.approx(np.mean(distinct))
    for kind in models.KINDS:
        per_row = entries[1][kind]["median"] / entries[1]["touched"]
        assert entries[1][kind]["per 1,000 rows"] == pytest.approx(1000 * per_row)
    results = {"axes": {"values": entries}, "targets": scaling.targets({"values": entries})}
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    assert [target["reached"] for target in results["targets"]] == [entries[1][kind]["growth"] for kind in models.KINDS]
    assert scaling.table(results).startswith("## Scaling")


@pytest.mark.filterwarnings("ignore")  # of the libraries that are compared
def test_every_step_that_a_gpu_is_timed_by_runs_and_is_in_its_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "RUN", 2)
    torch.manual_seed(0)
    entry = gpu.measure(SCHEMA, 64, rounds=4, device="cpu")
    results = {"gpu": "a GPU", "left out": [], "batches": {64: entry}, "targets": []}
    text = gpu.table(results)
    assert text.startswith("## On a GPU") and all(f"| {name} |" in text for name in entry["steps"])
    replayed = {gpu.REPLAYED, gpu.REPLAYED_SEARCH, gpu.REPLAYED_ARCH}
    assert {gpu.PLAIN, gpu.FOLDED, gpu.FIRST, gpu.SECOND, gpu.LOOPS} | replayed < set(entry["steps"])
    assert gpu.targets(64, entry["steps"])[0]["at_most"] == 1.35
    assert entry["steps"][gpu.PLAIN]["ratio"] == 1.0
    trained = [f"{kind}, {precision}, as due" for kind in models.KINDS for precision in ("float32", "bfloat16")]
    assert list(entry["training"]) == trained and all(f"| {name} |" in text for name in trained)
    assert json.loads(json.dumps(results, allow_nan=False))["batches"]["64"] == entry


def test_a_gpu_is_busy_while_one_kernel_or_more_run() -> None:
    assert gpu.busy([(4, 6), (0, 2), (1, 3), (4.5, 5)], 10) == 0.5
    assert gpu.busy([], 10) == 0.0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_section_says_that_nothing_was_measured_on_one() -> None:
    results = gpu.run(quick=True)
    assert results["targets"] == [] and "Not measured: there is no GPU." in gpu.table(results)
