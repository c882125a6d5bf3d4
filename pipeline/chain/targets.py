"""What a critic should say: the reward of a step and the value of what follows, in expectation or as observed.

NOTE[DIFF]: DeepChain's feedback is skip, click and leave. An order is a fourth outcome here. It is paid like the others
and leads back to the entrance page.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from pipeline.chain.world import CLICK, DETAIL, ENTRANCE, LEAVE, ORDER, SKIP, State

Value = Callable[[State], Tensor]  # states of B sessions -> (B,), Q'(s, pi'(s))
BOTH = (ENTRANCE, DETAIL)
STAYING = (SKIP, CLICK, ORDER)  # the feedback that something follows


def expected_target(
    state: State,
    actions: Tensor,
    chances: Tensor,
    rewards: Tensor,
    gamma: float,
    value: Value,
    pages: Collection[int] = BOTH,
) -> Tensor:
    """The model-based target y = sum_f P(f|s,a) [r_f + gamma (1 if not leave) Q'(s_f, pi'(s_f))], s_f = after(s, a, f).

    DeepChain's targets of both pages in one, with the order as an outcome of its own.

    Args:
        state: s of B sessions.
        actions: a (B,).
        chances: P (B, 4).
        rewards: r (4,) of skip, click, order and leave.
        gamma: discount.
        value: of the states that follow.
        pages: where the agent acts. A step to another page is the end for it.

    Returns:
        y (B,).
    """
    number = len(STAYING)
    feedback = torch.tensor(STAYING).repeat_interleave(len(state))
    rows = torch.arange(len(state)).repeat(number)
    following = state[rows].after(actions[rows], feedback)
    values = _inside(following, value, pages).view(number, len(state))
    return chances @ rewards + gamma * (values * chances.T[list(STAYING)]).sum(0)


def observed_target(
    state: State,
    actions: Tensor,
    feedback: Tensor,
    rewards: Tensor,
    gamma: float,
    value: Value,
    pages: Collection[int] = BOTH,
) -> Tensor:
    """The model-free target: the term of the feedback (B,) that was observed. See `expected_target`."""
    values = _inside(state.after(actions, feedback), value, pages)
    return rewards[feedback] + gamma * torch.where(feedback == LEAVE, 0.0, values)


def _inside(following: State, value: Value, pages: Collection[int]) -> Tensor:
    """The values of states; 0 where the page is another agent's."""
    values = value(following)
    if len(pages) == len(BOTH):
        return values
    (page,) = pages
    return torch.where(following.page == page, values, 0.0)
