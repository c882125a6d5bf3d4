"""RowAdam against torch's dense Adam, on tables of which a batch touches some rows."""

import pytest
import torch
from torch import Tensor, nn

from pipeline.embeddings.table import Table
from pipeline.training.row_adam import RowAdam

ROWS, DIM = 7, 3


def pair() -> tuple[nn.Parameter, nn.Parameter]:
    """Two parameters of equal values: one for RowAdam, one for dense Adam."""
    weight = torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return nn.Parameter(weight.clone()), nn.Parameter(weight.clone())


def touch(param: nn.Parameter, rows: list[int], values: Tensor) -> None:
    """Give ``param`` a sparse gradient, coalesced, with ``values`` (U, D) in ``rows``."""
    param.grad = torch.sparse_coo_tensor(torch.tensor([rows]), values, param.shape, check_invariants=True).coalesce()


def touch_densely(param: nn.Parameter, rows: list[int], values: Tensor) -> None:
    param.grad = torch.zeros_like(param).index_copy(0, torch.tensor(rows), values)


def draw(step: int, rows: int = ROWS) -> Tensor:
    return torch.randn(rows, DIM, generator=torch.Generator().manual_seed(100 + step), dtype=torch.float64)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_it_is_dense_adam_where_every_step_touches_every_row(weight_decay: float) -> None:
    ours, theirs = pair()
    settings = {"lr": 0.05, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": weight_decay}
    optimizers = RowAdam([ours], **settings), torch.optim.Adam([theirs], **settings)
    for step in range(20):
        touch(ours, list(range(ROWS)), draw(step))
        touch_densely(theirs, list(range(ROWS)), draw(step))
        for optimizer in optimizers:
            optimizer.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_the_first_step_moves_touched_rows_as_dense_adam_does_and_no_others() -> None:
    ours, theirs = pair()
    before = ours.detach().clone()
    touch(ours, [1, 4], draw(0, 2))
    touch_densely(theirs, [1, 4], draw(0, 2))
    RowAdam([ours], lr=0.1).step()
    torch.optim.Adam([theirs], lr=0.1).step()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    rest = [0, 2, 3, 5, 6]
    assert torch.equal(ours[rest], before[rest]) and not torch.equal(ours[[1, 4]], before[[1, 4]])


def test_a_row_that_a_step_leaves_out_keeps_its_value_and_its_moments() -> None:
    ours, theirs = pair()
    optimizer, dense = RowAdam([ours], lr=0.1), torch.optim.Adam([theirs], lr=0.1)
    for param, step, give in ((ours, optimizer, touch), (theirs, dense, touch_densely)):
        give(param, [1, 4], draw(0, 2))
        step.step()
    state = {key: optimizer.state[ours][key][4].clone() for key in ("exp_avg", "exp_avg_sq")}
    value, drifted = ours[4].clone(), theirs[4].clone()
    touch(ours, [1], draw(1, 1))
    optimizer.step()
    touch_densely(theirs, [1], draw(1, 1))
    dense.step()
    assert torch.equal(ours[4], value)
    for key, kept in state.items():
        assert torch.equal(optimizer.state[ours][key][4], kept) and bool(kept.any())
    assert not torch.equal(theirs[4], drifted)  # what dense Adam does instead


def test_weight_decay_is_an_l2_gradient_of_the_touched_rows_alone() -> None:
    decayed, plain = pair()
    before = decayed.detach().clone()
    touch(decayed, [0, 5], draw(0, 2))
    touch(plain, [0, 5], draw(0, 2) + 0.3 * before[[0, 5]])
    RowAdam([decayed], lr=0.1, weight_decay=0.3).step()
    RowAdam([plain], lr=0.1).step()
    torch.testing.assert_close(decayed, plain, rtol=1e-12, atol=1e-12)
    assert torch.equal(decayed[[1, 2, 3, 4, 6]], before[[1, 2, 3, 4, 6]])


def test_a_gradient_that_names_a_row_twice_counts_as_its_sum() -> None:
    ours, theirs = pair()
    ours.grad = torch.sparse_coo_tensor(torch.tensor([[4, 1, 4]]), draw(0, 3), ours.shape, check_invariants=True)
    touch(theirs, [1, 4], torch.stack([draw(0, 3)[1], draw(0, 3)[0] + draw(0, 3)[2]]))
    RowAdam([ours]).step()
    RowAdam([theirs]).step()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_a_table_s_own_gradient_is_what_it_takes() -> None:
    torch.manual_seed(0)
    table = Table(ROWS, DIM)
    before = table.weight.detach().clone()
    (table(torch.tensor([2, 6])) ** 2).sum().backward()
    RowAdam([table.weight], lr=0.01).step()
    expected = before.clone()
    expected[[2, 6]] -= 0.01 * before[[2, 6]].sign()  # a first step of Adam moves by lr
    torch.testing.assert_close(table.weight.detach(), expected, rtol=0, atol=1e-6)


def test_training_goes_on_to_the_bit_from_a_state_dict() -> None:
    def train(param: nn.Parameter, optimizer: RowAdam, steps: range) -> None:
        for step in steps:
            rows = sorted({step % ROWS, (3 * step + 1) % ROWS})
            touch(param, rows, draw(step, len(rows)))
            optimizer.step()

    straight, interrupted = pair()
    whole, first = RowAdam([straight], lr=0.05), RowAdam([interrupted], lr=0.05)
    train(straight, whole, range(10))
    train(interrupted, first, range(6))
    resumed = nn.Parameter(interrupted.detach().clone())
    second = RowAdam([resumed], lr=0.9)  # the state brings the settings along
    second.load_state_dict(first.state_dict())
    train(resumed, second, range(6, 10))
    assert torch.equal(resumed, straight)
    for key in ("step", "exp_avg", "exp_avg_sq"):
        assert torch.equal(torch.as_tensor(second.state[resumed][key]), torch.as_tensor(whole.state[straight][key]))


def test_a_parameter_without_a_gradient_is_left_alone() -> None:
    ours, other = pair()
    before = other.detach().clone()
    optimizer = RowAdam([ours, other])
    touch(ours, [0], draw(0, 1))
    optimizer.step()
    assert torch.equal(other, before) and other not in optimizer.state


def test_negative_settings_are_refused() -> None:
    for wrong, got in (({"lr": -0.1}, "-0.1 and 0.0"), ({"weight_decay": -1.0}, "0.001 and -1.0")):
        with pytest.raises(ValueError, match=f"lr and weight_decay must be at least 0, got {got}"):
            RowAdam([pair()[0]], **wrong)
