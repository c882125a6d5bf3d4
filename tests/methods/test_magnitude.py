"""Magnitude pruning, on the numbers of a small table; the storage is tested in test_sparse."""

import numpy as np
import pytest
import torch

from pipeline.allocation.evidence import Evidence
from pipeline.data.schema import Field, Schema
from pipeline.embeddings.batch import Lookup
from pipeline.embeddings.cost import cost, full_tables
from pipeline.methods import magnitude

SCHEMA = Schema((Field("user", 70), Field("item", 50), Field("age", 3)))
DIM = 8
FULL = full_tables(SCHEMA, DIM).bytes


def given(budget: int | None = None) -> Evidence:
    return Evidence(SCHEMA, DIM, ((DIM,),) * 3, np.full((3, 1), FULL), FULL, budget=budget)


def trained(budget: int, **options):
    embedding = magnitude.build(SCHEMA, DIM, magnitude.derive(given(budget), **options))
    with torch.no_grad():
        embedding.table.weight.copy_(torch.randn(SCHEMA.num_rows, DIM, generator=torch.Generator().manual_seed(1)))
    return embedding


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_all_that_is_left_is_at_least_as_large_as_all_that_is_not(share: float) -> None:
    embedding = trained(int(FULL * share))
    before = embedding.table.weight.detach().clone()
    embedding.finish()
    after = embedding.table.weight.detach()
    left = after != 0
    assert int(left.sum()) == embedding.layout.kept
    assert torch.equal(after[left], before[left])
    assert float(before[left].abs().min()) >= float(before[~left].abs().max())
    assert 0.98 * FULL * share < cost(embedding.packed()).bytes <= FULL * share


def test_every_row_keeps_its_largest_numbers_where_that_is_asked_for() -> None:
    embedding = trained(FULL // 2, least=2)
    before = embedding.table.weight.detach().abs()
    embedding.finish()
    left = embedding.table.weight.detach() != 0
    assert bool((left.sum(1) >= 2).all())
    own = torch.zeros_like(left).scatter_(1, before.topk(2, dim=1).indices, True)
    assert bool(left[own].all())
    others = before[~own]
    assert float(others[left[~own]].min()) >= float(others[~left[~own]].max())


def test_what_every_row_has_to_keep_is_the_least_budget() -> None:
    with pytest.raises(
        ValueError, match=r"no 246 cells of 123 rows can be kept in a budget of 100 bytes: the least is"
    ):
        magnitude.derive(given(100), least=2)
    with pytest.raises(ValueError, match=r"a row has 8 cells, however least=9"):
        magnitude.derive(given(), least=9)


def test_training_sees_the_whole_table() -> None:
    embedding = trained(FULL // 10)
    ids = torch.tensor([[1, 2, 0], [69, 49, 2]], dtype=torch.int32)
    expected = embedding.table.weight[torch.tensor([[1, 72, 120], [69, 119, 122]])]
    assert torch.equal(embedding(Lookup(SCHEMA)(ids)), expected)
