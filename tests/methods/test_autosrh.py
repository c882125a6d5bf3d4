"""AutoSrh: the block of a row, its relevance, and the threshold over all fields."""

import numpy as np
import pytest
import torch

from pipeline.data.schema import Field, Schema
from pipeline.embeddings.batch import Lookup
from pipeline.embeddings.cost import cost, full_tables
from pipeline.methods import autosrh
from tests.contracts import evidence, problem

SCHEMA = Schema((Field("user", 20), Field("item", 10), Field("age", 3)))
DIM = 4
FULL = full_tables(SCHEMA, DIM).bytes
SHARES = (0.2, 0.3, 0.5)


def supernet(**options) -> autosrh.WeightedBlocks:
    return autosrh.find(problem("autosrh", SCHEMA, DIM, [[DIM]] * 3), **{"shares": SHARES, **options})


def test_blocks_are_shares_of_a_field_s_values_with_the_frequent_ones_first() -> None:
    user = [0] * 4 + [1] * 6 + [2] * 10
    item = [3] * 2 + [4] * 3 + [5] * 5
    age = [6, 7, 8]
    assert autosrh.blocks(SCHEMA, SHARES).tolist() == user + item + age
    for wrong in ((), (0.5, 0.4), (1.5, -0.5)):
        with pytest.raises(ValueError, match="must be above 0 and add up to 1"):
            supernet(shares=wrong)


def test_rows_are_multiplied_by_the_relevances_of_their_block_which_are_the_architecture() -> None:
    embedding = supernet()
    with torch.no_grad():
        embedding.alpha.copy_(torch.rand(embedding.alpha.shape))
    ids = torch.tensor([[3, 9, 0], [4, 1, 2]], dtype=torch.int32)
    rows = torch.tensor([[3, 29, 30], [4, 21, 32]])
    block = torch.tensor([[0, 5, 6], [1, 3, 8]])
    embedded = embedding(Lookup(SCHEMA)(ids))
    torch.testing.assert_close(embedded, embedding.table.weight[rows] * embedding.alpha[block])
    gradient = torch.autograd.grad(embedded.sum(), embedding.arch_parameters())[0]
    expected = torch.zeros_like(gradient).index_add_(0, block.flatten(), embedding.table.weight[rows.flatten()])
    torch.testing.assert_close(gradient, expected)


def test_relevances_start_at_1_stay_between_0_and_1_and_wait_for_the_warm_up() -> None:
    embedding = supernet(warm_up=0.3)
    assert embedding.warming() and bool((embedding.alpha == 1).all())
    with torch.no_grad():
        embedding.alpha[0] = torch.tensor([-0.5, 0.25, 1.5, 1.0])
    assert embedding.findings().arrays()["importance"][0, 0] == 0  # also after the last step
    embedding.before_step(29, 100)
    assert embedding.warming() and embedding.alpha[0].tolist() == [0.0, 0.25, 1.0, 1.0]
    embedding.before_step(30, 100)
    assert not embedding.warming()


def test_the_largest_products_of_all_fields_are_kept() -> None:
    embedding = supernet()
    with torch.no_grad():
        embedding.table.weight.copy_(torch.randn(33, DIM, generator=torch.Generator().manual_seed(0)))
        embedding.alpha.copy_(torch.rand(embedding.alpha.shape, generator=torch.Generator().manual_seed(1)))
        product = (embedding.table.weight * embedding.alpha[embedding.block]).abs().numpy()
    arrays = embedding.findings().arrays()
    np.testing.assert_allclose(arrays["importance"], product, rtol=1e-3)
    allocation = autosrh.derive(evidence("autosrh", SCHEMA, DIM, arrays=arrays, budget=FULL // 3))
    built = autosrh.build(SCHEMA, DIM, allocation)
    mask = built.mask.numpy()
    assert cost(built.packed()).bytes <= FULL // 3 and mask.sum() == built.layout.kept
    assert product[mask].min() >= product[~mask].max() * 0.999
