"""Magnitude pruning of a small table; its storage is tested in test_kept_cells."""

import pytest
import torch

from pipeline.data.schema import Field, Schema
from pipeline.embeddings.batch import Lookup
from pipeline.embeddings.cost import cost, full_tables
from pipeline.methods import magnitude
from tests.contracts import evidence

SCHEMA = Schema((Field("user", 70), Field("item", 50), Field("age", 3)))
DIM = 8
FULL = full_tables(SCHEMA, DIM).bytes


def trained(budget: int, **options):
    allocation = magnitude.derive(evidence("magnitude", SCHEMA, DIM, budget=budget), **options)
    embedding = magnitude.build(SCHEMA, DIM, allocation)
    with torch.no_grad():
        embedding.table.weight.copy_(torch.randn(SCHEMA.num_rows, DIM, generator=torch.Generator().manual_seed(1)))
    return embedding


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_every_kept_number_is_at_least_as_large_as_every_other(share: float) -> None:
    embedding = trained(int(FULL * share))
    before = embedding.table.weight.detach().clone()
    embedding.finish()
    after = embedding.table.weight.detach()
    left = after != 0
    assert int(left.sum()) == embedding.layout.kept
    assert torch.equal(after[left], before[left])
    assert float(before[left].abs().min()) >= float(before[~left].abs().max())
    assert 0.98 * FULL * share < cost(embedding.packed()).bytes <= FULL * share


def test_every_row_keeps_its_largest_numbers_if_least_is_set() -> None:
    embedding = trained(FULL // 2, least=2)
    before = embedding.table.weight.detach().abs()
    embedding.finish()
    left = embedding.table.weight.detach() != 0
    assert bool((left.sum(1) >= 2).all())
    own = torch.zeros_like(left).scatter_(1, before.topk(2, dim=1).indices, True)
    assert bool(left[own].all())
    others = before[~own]
    assert float(others[left[~own]].min()) >= float(others[~left[~own]].max())


def test_a_budget_must_suffice_for_what_every_row_keeps() -> None:
    with pytest.raises(
        ValueError, match=r"a budget of 100 bytes is too small to keep 246 cells of 123 rows: the least"
    ):
        magnitude.derive(evidence("magnitude", SCHEMA, DIM, budget=100), least=2)


def test_training_sees_the_whole_table() -> None:
    embedding = trained(FULL // 10)
    ids = torch.tensor([[1, 2, 0], [69, 49, 2]], dtype=torch.int32)
    expected = embedding.table.weight[torch.tensor([[1, 72, 120], [69, 119, 122]])]
    assert torch.equal(embedding(Lookup(SCHEMA)(ids)), expected)
