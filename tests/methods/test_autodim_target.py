"""AutoDim for a target: what its architecture's loss holds, and where that leads. AutoDim itself: test_autodim."""

import numpy as np
import pytest
import torch

from pipeline.allocation.evidence import DEFAULT_SHARE
from pipeline.data.schema import Field, Schema
from pipeline.embeddings.cost import full_tables, prices
from pipeline.methods import autodim_target

SCHEMA = Schema((Field("user", 70), Field("item", 50), Field("age", 3)))
CANDIDATES = ((2, 4), (0, 1, 2, 4), (1, 2, 4))
DIM = 4
PRICES = prices(autodim_target.build, SCHEMA, CANDIDATES, DIM)
THERE = np.array([[n < len(offered) for n in range(4)] for offered in CANDIDATES])


def expected_bytes(supernet) -> float:
    return float((supernet.scores().exp().detach().numpy() * np.where(THERE, PRICES, 0)).sum())


@pytest.mark.parametrize("target", [300, 1000, 5000])
def test_only_expected_bytes_beyond_the_target_have_a_price_and_it_is_their_share_of_the_target(target: int) -> None:
    supernet = autodim_target.search(SCHEMA, DIM, CANDIDATES, PRICES, target=target, weight=0.3)
    with torch.no_grad():
        supernet.selection.logits.copy_(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)))
    loss = torch.tensor(0.7)
    expected = 0.7 + 0.3 * max(0.0, expected_bytes(supernet) / target - 1)
    assert float(supernet.objective(loss, "arch").detach()) == pytest.approx(expected, rel=1e-5)
    assert supernet.objective(loss, "train") is loss
    assert (expected > 0.7) == (target < 2000)


@pytest.mark.parametrize(("target", "size"), [(None, DEFAULT_SHARE), (0.5, 0.5)])
def test_a_target_may_be_a_share_of_the_full_tables_and_is_a_quarter_by_default(target: float, size: float) -> None:
    supernet = autodim_target.search(SCHEMA, DIM, CANDIDATES, PRICES, target=target, weight=1.0)
    full = full_tables(SCHEMA, DIM).bytes
    found = float(supernet.objective(torch.tensor(0.0), "arch").detach())
    assert found == pytest.approx(max(0, expected_bytes(supernet) / int(size * full) - 1), rel=1e-5)


def test_a_target_that_is_no_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"budget must be a whole number .* however: 1.5"):
        autodim_target.search(SCHEMA, DIM, CANDIDATES, PRICES, target=1.5)


@pytest.mark.parametrize("target", [700, 1200])
def test_the_search_comes_to_the_target_though_more_bytes_would_be_better(target: int) -> None:
    supernet = autodim_target.search(SCHEMA, DIM, CANDIDATES, PRICES, target=target)
    optimizer = torch.optim.Adam(supernet.arch_parameters(), lr=0.02)
    for _ in range(400):
        optimizer.zero_grad()
        wish = -0.01 * (supernet.scores().exp() * supernet.selection.dims).sum() / DIM  # ever wider fields
        supernet.objective(wish, "arch").backward()
        optimizer.step()
    assert expected_bytes(supernet) == pytest.approx(target, rel=0.05)
