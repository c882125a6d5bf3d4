"""The controls by frequency: which values have rows of their own, and what the others share."""

import numpy as np
import pytest
import torch

from pipeline.data.schema import PADDING, Field, Schema
from pipeline.embeddings.batch import Lookup
from pipeline.embeddings.frequency import falling, most_frequent, ranked, training_counts
from pipeline.methods import frequent_int4, hot_hashing
from tests.contracts import evidence, problem

SCHEMA = Schema((Field("user", 60), Field("age", 3), Field("tags", 30, width=2)))
DIM = 8


def draw() -> np.ndarray:
    rng = np.random.default_rng(0)
    ids = np.stack([(rng.random(3000) ** 3 * n).astype(np.int32) for n in (60, 3, 30, 30)], 1)
    ids[ids[:, 3] == ids[:, 2], 3] = PADDING
    return ids


def asked(name: str):
    return problem(name, SCHEMA, DIM, [[DIM]] * 3, training_ids=draw)


def test_counts_are_those_of_the_ids_and_padding_is_none() -> None:
    counts, ids = training_counts(asked("hot_hashing")), draw()
    assert counts[5] == (ids[:, 0] == 5).sum() and counts[61] == (ids[:, 1] == 1).sum()
    assert counts[63 + 7] == (ids[:, 2:] == 7).sum() and counts.sum() == (ids != PADDING).sum()
    with pytest.raises(ValueError, match="hot_hashing needs the ids of the training rows"):
        training_counts(problem("hot_hashing", SCHEMA, DIM, [[DIM]] * 3))


def test_the_most_frequent_values_are_the_first_ids_of_their_fields_also_if_the_unknown_value_is_rare() -> None:
    schema = Schema((Field("a", 4), Field("b", 3)))
    counts = np.array([1, 9, 5, 2, 0, 7, 6])
    assert falling(counts, schema).tolist() == [9, 9, 5, 2, 7, 7, 6]
    order = ranked(counts, schema)
    assert order.tolist() == [0, 1, 4, 5, 6, 2, 3]
    assert [most_frequent(order, schema, number).tolist() for number in (1, 3, 6)] == [[1, 0], [2, 1], [3, 3]]


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_hot_values_have_rows_of_their_own_and_the_others_of_a_field_share(share: float) -> None:
    arrays = hot_hashing.find(asked("hot_hashing"))
    allocation = hot_hashing.derive(evidence("hot_hashing", SCHEMA, DIM, arrays=arrays, budget=1500), share=share)
    hot = allocation.arrays["hot"].tolist()
    torch.manual_seed(0)
    embedding = hot_hashing.build(SCHEMA, DIM, allocation)
    assert sum(hot) == len(embedding.table.weight)
    assert abs(len(embedding.shared.weight) - sum(hot) * share / (1 - share)) <= 3
    ids = torch.stack([torch.arange(60), torch.arange(60) % 3, torch.arange(60) % 30, torch.full((60,), PADDING)], 1)
    served = embedding(Lookup(SCHEMA)(ids.int())).detach()
    shared = {}
    for field, number in enumerate((60, 3, 30)):
        distinct = served[:number, field].unique(dim=0)
        own = served[: hot[field], field]
        shared[field] = {tuple(row) for row in served[hot[field] : number, field].tolist()}
        assert len(own.unique(dim=0)) == hot[field] and len(distinct) == hot[field] + len(shared[field])
    assert len(shared[0]) < 60 - hot[0]
    assert not shared[0] & shared[2]  # fields have rows of their own
    counts = np.split(falling(training_counts(asked("hot_hashing")), SCHEMA), SCHEMA.first_rows[1:])
    coldest = min(int(field[number - 1]) for field, number in zip(counts, hot, strict=True) if number)
    hottest = max(int(field[number]) for field, number in zip(counts, hot, strict=True) if number < len(field))
    assert coldest >= hottest


def test_frequent_values_have_rows_in_4_bits_and_all_others_of_a_field_have_one() -> None:
    arrays = frequent_int4.find(asked("frequent_int4"))
    allocation = frequent_int4.derive(evidence("frequent_int4", SCHEMA, DIM, arrays=arrays, budget=200))
    rows = allocation.arrays["rows"].tolist()
    assert 200 - 6 - 4 * 3 < sum(rows) * (DIM // 2 + 2) <= 200 - 4 * 3
    torch.manual_seed(0)
    embedding = frequent_int4.build(SCHEMA, DIM, allocation)
    embedding.finish()
    ids = torch.stack([torch.arange(60), torch.arange(60) % 3, torch.arange(60) % 30, torch.full((60,), PADDING)], 1)
    occ = Lookup(SCHEMA)(ids.int())
    served = embedding(occ).detach()
    for field, number in enumerate((60, 3, 30)):
        assert len(served[:number, field].unique(dim=0)) == rows[field]
        assert bool((served[rows[field] - 1 : number, field] == served[number - 1, field]).all())
    assert torch.equal(embedding.lookup(embedding.packed(), occ), embedding.vectors(occ).detach())
    (embedding(occ)[:, 0].sum() * 2).backward()
    gradient = next(iter(embedding.tables.tables.values())).weight.grad.to_dense()
    assert gradient[0].tolist() == [2.0] * DIM  # one value
    assert gradient[rows[0] - 1].tolist() == [2.0 * (60 - rows[0] + 1)] * DIM  # all that share it
