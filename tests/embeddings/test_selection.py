"""The soft selection: its temperature, its weights, and the settings that it refuses."""

import pytest
import torch

from pipeline.embeddings.selection import ANNEALED, Selection, Temperature

pytestmark = pytest.mark.usefixtures("double")


def test_by_default_the_temperature_follows_the_paper_s_schedule() -> None:
    selection = Selection([[2, 4]])
    for step, tau in [(0, 1.0), (1000, 0.95), (19_800, 0.01), (50_000, 0.01)]:
        selection.before_step(step, 100_000)
        assert float(selection.tau) == pytest.approx(tau)


def test_a_temperature_per_run_falls_from_the_end_of_the_warm_up() -> None:
    selection = Selection([[2, 4]], ANNEALED, warm_up=0.2)
    for step, tau, warming in [(0, 1.0, True), (19, 1.0, True), (20, 1.0, False), (60, 0.5, False), (99, 0.1, False)]:
        selection.before_step(step, 100)
        assert float(selection.tau) == pytest.approx(tau)
        assert bool(selection.warming) is warming


def test_weights_are_equal_in_the_warm_up_and_a_gumbel_softmax_after_it() -> None:
    selection = Selection([[2, 4], [1, 2, 4]], warm_up=0.5)
    torch.testing.assert_close(selection(), torch.tensor([[0.5, 0.5, 0.0], [1 / 3, 1 / 3, 1 / 3]]))
    selection.before_step(50, 100)
    selection.tau.fill_(0.5)
    with torch.no_grad():
        selection.logits.copy_(torch.tensor([[0.3, -0.2, 0.0], [0.1, 0.5, -1.0]]))
    torch.manual_seed(3)
    drawn = selection()
    torch.manual_seed(3)
    noise = -torch.log(-torch.log(torch.rand(2, 3)))
    expected = torch.softmax((selection.log_alpha() + noise) / 0.5, 1)
    torch.testing.assert_close(drawn, expected)
    selection.eval()
    torch.testing.assert_close(selection(), torch.softmax(selection.log_alpha() / 0.5, 1))


def test_settings_that_make_no_selection_are_refused() -> None:
    for candidates in ([[4, 2]], [[2, 2]], [[-1, 2]], [[]]):
        with pytest.raises(ValueError, match="candidate dims must be ascending, distinct and not negative, got"):
            Selection(candidates)
    with pytest.raises(ValueError, match=r"warm_up must be at least 0 and below 1, got 1\.0"):
        Selection([[2, 4]], warm_up=1.0)
    with pytest.raises(ValueError, match="the floor must be at most the start, got floor=2, start=1"):
        Temperature(floor=2.0)
