"""Training along a stream: what a prediction may depend on, who steps when, and what has to be kept to serve."""

from typing import Any

import numpy as np
import pytest
import torch

from pipeline.backbones.fm import Backbone
from pipeline.data.schema import PADDING, Field, Schema
from pipeline.embeddings.batch import Lookup
from pipeline.embeddings.cost import cost
from pipeline.embeddings.popularity import BUCKETS, By, ByPopularity, bucket_of, rule
from pipeline.models.model import Model
from pipeline.training.prequential import prequential
from pipeline.training.task import Task
from pipeline.training.weights import Diverged
from pipeline.workflow.plug import plug

SCHEMA = Schema((Field("user", 40), Field("movie", 25), Field("genres", 8, width=2)))
SLOTS = ([0], [1], [2, 3])  # of each field
DIMS = [1, 2, 4]
ROWS = 300
TASK = Task.of("ctr", plug("tasks", "ctr"), {})


def draw(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.integers(1, n, ROWS) for n in (40, 25, 8, 8)], 1).astype(np.int32)
    ids[::3, 3] = PADDING
    return ids, rng.integers(0, 2, ROWS).astype(np.uint8)


def embedded(by: By = "controllers", dims: list[int] = DIMS) -> ByPopularity:
    torch.manual_seed(0)
    return ByPopularity(SCHEMA, dims, 4, by)


def trained(embedding: ByPopularity, ids: np.ndarray, labels: np.ndarray, **options: Any) -> dict[str, np.ndarray]:
    """What a model with this embedding predicts along the stream."""
    model = Model(SCHEMA, embedding, Backbone)
    return prequential(model, TASK, ids, labels, **{"batch_size": 50, "lr": 0.05, "arch_lr": 0.01, **options})


def test_buckets_of_popularity_are_powers_of_two() -> None:
    counts = torch.tensor([0, 1, 2, 3, 6, 7, 2**15 - 2, 2**15 - 1, 10**9])
    assert bucket_of(counts).tolist() == [0, 1, 1, 2, 2, 3, 14, 15, 15]


def test_the_rule_never_gives_a_more_popular_value_fewer_dimensions() -> None:
    for candidates in (1, 2, 3, 5, 6):
        made = rule(candidates)
        assert made.shape == (BUCKETS, candidates) and bool((made.sum(1) == 1).all())
        chosen = made.argmax(1).tolist()
        assert chosen == sorted(chosen) and chosen[0] == 0 and chosen[10:] == [candidates - 1] * 6


@pytest.mark.parametrize("by", ["controllers", "equal", "rule"])
def test_a_prediction_knows_neither_its_own_label_nor_later_rows(by: By) -> None:
    ids, labels = draw()
    before = trained(embedded(by), ids, labels)["outputs"]
    other_ids, other_labels = ids.copy(), labels.copy()
    other_labels[100:] = 1 - labels[100:]
    other_ids[150:] = draw(1)[0][150:]
    after = trained(embedded(by), other_ids, other_labels)["outputs"]
    np.testing.assert_array_equal(before[:150], after[:150])  # the batch from row 100 precedes the labels that differ
    assert not np.allclose(before[150:], after[150:])


def test_a_prediction_does_not_depend_on_the_other_rows_of_its_batch() -> None:
    ids, labels = draw()
    before = trained(embedded(), ids, labels)["outputs"]
    other = ids.copy()
    other[251:] = draw(1)[0][251:]  # the rest of the last batch
    np.testing.assert_allclose(before[250], trained(embedded(), other, labels)["outputs"][250], rtol=1e-4)


def test_a_batch_is_predicted_in_both_forms_before_it_is_trained_on() -> None:
    ids, labels = draw()
    whole = trained(embedded(), ids, labels)
    both = trained(embedded(), ids, labels, hard=True)
    assert list(whole) == ["outputs"] and list(both) == ["outputs", "hard"]
    np.testing.assert_array_equal(whole["outputs"], both["outputs"])  # to predict twice changes no training
    assert not np.allclose(both["outputs"], both["hard"])


def test_counters_count_every_occurrence_up_to_the_last_row() -> None:
    ids, labels = draw()
    embedding = embedded()
    trained(embedding, ids, labels)
    counts = embedding.counts.numpy()
    for slots, first, n in zip(SLOTS, SCHEMA.first_rows, SCHEMA.cardinalities, strict=True):
        flat = ids[:, slots][ids[:, slots] != PADDING]
        assert counts[first : first + n].tolist() == np.bincount(flat, minlength=n).tolist()


def test_controllers_step_on_a_batch_before_the_weights_have_seen_it() -> None:
    """Weights that do not move and weights that do give the controllers the same step on the first batch."""
    ids, labels = draw()
    moved, still, single = (embedded() for _ in range(3))
    for embedding in (moved, still, single):
        with torch.no_grad():
            for parameter in embedding.arch_parameters():
                parameter.add_(0.1)
    start = [parameter.clone() for parameter in single.arch_parameters()]
    trained(moved, ids[:50], labels[:50], lr=0.5)
    trained(still, ids[:50], labels[:50], lr=0.0)
    trained(single, ids[:50], labels[:50], level="single")
    for a, b in zip(moved.arch_parameters(), still.arch_parameters(), strict=True):
        torch.testing.assert_close(a, b)
    for embedding in (moved, single):
        assert any(not torch.equal(a, b) for a, b in zip(start, embedding.arch_parameters(), strict=True))


@pytest.mark.parametrize(("by", "hard"), [("controllers", True), ("rule", False)])
def test_a_choice_needs_the_chosen_slices_and_no_others(by: By, hard: bool) -> None:
    ids, labels = draw()
    embedding = embedded(by)
    trained(embedding, ids, labels)
    embedding.eval()
    with torch.no_grad():
        for parameter in embedding.arch_parameters():
            parameter.copy_(torch.randn(parameter.shape))
    embedding.hard = hard
    place = embedding.weights().argmax(2)[embedding.fields, bucket_of(embedding.counts)]
    assert len(place.unique()) > 1
    size = cost(embedding.packed())
    assert size.params_by_kind["table"] == sum(DIMS[t] for t in place.tolist())
    assert size.params_by_kind["counters"] == SCHEMA.num_rows
    occ = Lookup(SCHEMA)(torch.from_numpy(ids))
    with torch.no_grad():
        expected = embedding(occ)
        for row, t in enumerate(place.tolist()):
            begin = sum(DIMS[:t])
            kept = embedding.slices.table.weight[row, begin : begin + DIMS[t]].clone()
            embedding.slices.table.weight[row] = 7.0
            embedding.slices.table.weight[row, begin : begin + DIMS[t]] = kept
        torch.testing.assert_close(embedding(occ), expected)


def test_mixed_slices_cost_all_slices_the_controllers_and_the_counters() -> None:
    embedding = embedded()
    size = cost(embedding.packed())
    assert size.params_by_kind["table"] == SCHEMA.num_rows * sum(DIMS)
    assert size.params_by_kind["counters"] == SCHEMA.num_rows
    assert size.params_by_kind["controller"] == sum(p.numel() for p in embedding.arch_parameters())
    assert "counters" not in cost(embedded("equal", [4]).packed()).params_by_kind


def test_a_stream_ends_when_a_number_is_not_finite_and_names_step_and_rates() -> None:
    with pytest.raises(Diverged, match=r"is not finite at step \d+, so .* lower the learning rates: stream.lr is "):
        trained(embedded(), *draw(), lr=1e30)
