"""RowAdagrad against torch's dense Adagrad, on tables of which a batch touches some rows."""

import pytest
import torch

from pipeline.training.row_adagrad import RowAdagrad
from tests.training.test_row_adam import draw, pair, touch, touch_densely


def test_it_is_dense_adagrad_whatever_rows_a_step_touches() -> None:
    ours, theirs = pair()
    before = ours.detach().clone()
    optimizers = RowAdagrad([ours], lr=0.05), torch.optim.Adagrad([theirs], lr=0.05)
    for step in range(20):
        rows = [step % 5, 5 + step % 2] if step % 3 else [0, 3, 5]  # row 6 is not touched until step 1
        for param, give in ((ours, touch), (theirs, touch_densely)):
            give(param, rows, draw(step, len(rows)))
        for optimizer in optimizers:
            optimizer.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert not torch.isclose(ours, before).any()


def test_its_sums_are_saved_and_go_on() -> None:
    ours, theirs = pair()
    first, dense = RowAdagrad([ours], lr=0.05), torch.optim.Adagrad([theirs], lr=0.05)
    again = RowAdagrad([ours], lr=1.0)
    for step in range(4):
        if step == 2:
            again.load_state_dict(first.state_dict())
        touch(ours, [1, 4], draw(step, 2))
        touch_densely(theirs, [1, 4], draw(step, 2))
        (first if step < 2 else again).step()
        dense.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_a_rate_below_0_is_refused() -> None:
    with pytest.raises(ValueError, match=r"lr must be at least 0, got -0\.1"):
        RowAdagrad(pair(), lr=-0.1)
