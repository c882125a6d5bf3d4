"""AutoDim for a target: its architecture's loss, and what that leads to. AutoDim itself is tested in test_autodim."""

import numpy as np
import pytest
import torch

from pipeline.allocation.budget import DEFAULT_SHARE
from pipeline.data.schema import Field, Schema
from pipeline.experiment.method import Method
from pipeline.methods import autodim_target
from tests.contracts import problem

SCHEMA = Schema((Field("user", 70), Field("item", 50), Field("age", 3)))
CANDIDATES = ((2, 4), (0, 1, 2, 4), (1, 2, 4))
PROBLEM = problem("autodim_target", SCHEMA, 4, CANDIDATES)
THERE = np.array([[n < len(offered) for n in range(4)] for offered in CANDIDATES])


def expected_bytes(supernet) -> float:
    p = supernet.findings().scores.exp().detach().numpy()
    return float((p * np.where(THERE, PROBLEM.prices, 0)).sum())


@pytest.mark.parametrize("target", [300, 1000, 5000])
def test_only_expected_bytes_beyond_the_target_cost_anything_namely_their_share_of_the_target(target: int) -> None:
    supernet = autodim_target.find(PROBLEM, target=target, weight=0.3)
    with torch.no_grad():
        supernet.selection.logits.copy_(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)))
    loss = torch.tensor(0.7)
    expected = 0.7 + 0.3 * max(0.0, expected_bytes(supernet) / target - 1)
    assert float(supernet.objective(loss, "arch").detach()) == pytest.approx(expected, rel=1e-5)
    assert supernet.objective(loss, "train") is loss
    assert (expected > 0.7) == (target < 2000)


@pytest.mark.parametrize(("target", "share"), [(None, DEFAULT_SHARE), (0.5, 0.5)])
def test_a_target_may_be_a_share_of_the_full_tables_and_is_a_quarter_by_default(target: float, share: float) -> None:
    supernet = autodim_target.find(PROBLEM, target=target, weight=1.0)
    penalty = float(supernet.objective(torch.tensor(0.0), "arch").detach())
    assert penalty == pytest.approx(max(0, expected_bytes(supernet) / int(share * PROBLEM.full_bytes) - 1), rel=1e-5)


def test_a_target_that_is_not_a_size_is_refused() -> None:
    for wrong, shown in ((1.5, "1.5"), (1, "1"), ("0.5", "'0.5'"), (True, "true")):
        with pytest.raises(ValueError, match=rf"autodim_target: target must be .* got {shown}"):
            Method.named("autodim_target", {"target": wrong})


@pytest.mark.parametrize("target", [700, 1200])
def test_the_search_reaches_the_target_even_if_more_bytes_would_be_better(target: int) -> None:
    supernet = autodim_target.find(PROBLEM, target=target)
    optimizer = torch.optim.Adam(supernet.arch_parameters(), lr=0.02)
    for _ in range(400):
        optimizer.zero_grad()
        p = supernet.findings().scores.exp()
        wish = -0.01 * (p * supernet.selection.dims).sum() / 4  # for wider and wider fields
        supernet.objective(wish, "arch").backward()
        optimizer.step()
    assert expected_bytes(supernet) == pytest.approx(target, rel=0.05)
