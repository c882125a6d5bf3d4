"""Model-based targets are exact expectations, and model-free ones are right in the mean."""

import pytest
import torch

from pipeline.chain.agents import VARIANTS, Brain
from pipeline.chain.targets import BOTH, expected_target, observed_target
from pipeline.chain.world import CLICK, DETAIL, ENTRANCE, LEAVE, NOTHING, ORDER, SKIP, State
from pipeline.workflow.chain import Networks

REWARDS = torch.tensor([-0.1, 1.0, 5.0, -0.5], dtype=torch.float64)
GAMMA = 0.9
VECTORS = torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Row = tuple[list[int], int, int, int]  # history, page, shown, skips
ROWS: list[Row] = [
    ([NOTHING, NOTHING, 4], ENTRANCE, NOTHING, 0),
    ([1, 2, 3], ENTRANCE, NOTHING, 3),
    ([NOTHING, 0, 5], DETAIL, 5, 0),
    ([5, 5, 2], DETAIL, 2, 0),
]
ACTIONS = [3, 0, 1, 5]


def made(rows: list[Row]) -> State:
    return State(*(torch.tensor([row[column] for row in rows]) for column in range(4)))


def following(row: Row, action: int, feedback: int) -> Row:
    """What the contract says in words, for one session."""
    history, _, _, skips = row
    if feedback == SKIP:
        return history, ENTRANCE, NOTHING, skips + 1
    moved = [*history[1:], action]
    return (moved, DETAIL, action, 0) if feedback == CLICK else (moved, ENTRANCE, NOTHING, 0)


def chances() -> torch.Tensor:
    return torch.randn(len(ROWS), 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64).softmax(1)


def brain() -> Brain:
    torch.manual_seed(3)
    built = Brain(VECTORS, BOTH, VARIANTS["deepchain"], Networks(memory=4, hidden=8, exact_items=0, candidates=2))
    return built.double()


@pytest.mark.parametrize("pages", [BOTH, (ENTRANCE,), (DETAIL,)])
def test_the_model_based_target_is_the_expectation_by_enumeration(pages: tuple[int, ...]) -> None:
    critic, p = brain(), chances()
    expected = []
    for number, (row, action) in enumerate(zip(ROWS, ACTIONS, strict=True)):
        y = 0.0
        for feedback in (SKIP, CLICK, ORDER, LEAVE):
            worth = float(REWARDS[feedback])
            if feedback != LEAVE and (after := following(row, action, feedback))[1] in pages:
                worth += GAMMA * float(critic.value(made([after])))
            y += float(p[number, feedback]) * worth
        expected.append(y)
    found = expected_target(made(ROWS), torch.tensor(ACTIONS), p, REWARDS, GAMMA, critic.value, pages)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-9)


@pytest.mark.parametrize("pages", [BOTH, (DETAIL,)])
def test_the_model_free_target_is_the_model_based_one_in_the_mean(pages: tuple[int, ...]) -> None:
    critic, p = brain(), chances()
    number = 4_000
    feedback = torch.multinomial(p, number, replacement=True, generator=torch.Generator().manual_seed(4))
    rows = torch.arange(len(ROWS)).repeat_interleave(number)
    state, actions = made(ROWS), torch.tensor(ACTIONS)
    sampled = observed_target(state[rows], actions[rows], feedback.flatten(), REWARDS, GAMMA, critic.value, pages)
    sampled = sampled.view(len(ROWS), number)
    expected = expected_target(state, actions, p, REWARDS, GAMMA, critic.value, pages)
    assert ((sampled.mean(1) - expected).abs() < 4 * sampled.std(1) / number**0.5).all()


def test_the_model_free_target_is_the_term_of_the_feedback() -> None:
    critic, state, actions = brain(), made(ROWS), torch.tensor(ACTIONS)
    for feedback in (SKIP, CLICK, ORDER):
        found = observed_target(state, actions, torch.full((4,), feedback), REWARDS, GAMMA, critic.value)
        after = [following(row, action, feedback) for row, action in zip(ROWS, ACTIONS, strict=True)]
        torch.testing.assert_close(found, REWARDS[feedback] + GAMMA * critic.value(made(after)))
    left = observed_target(state, actions, torch.full((4,), LEAVE), REWARDS, GAMMA, critic.value)
    assert left.tolist() == [-0.5] * 4
