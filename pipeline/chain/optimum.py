"""Exact values of policies in a tabular world, and the best policy, by dynamic programming.

To the feedback, a state is the user's type, the page with its shown item, and the skips in a row. These are finitely
many, and users leave sooner or later, so the expected reward of the rest of a session, v, is the solution of
v = r + P v (Puterman 1994, Markov Decision Processes, section 7.2, expected total reward). It is not discounted, and a
session has no longest number of steps. Policy iteration finds the best policy (section 7.2.4).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.chain.sessions import REWARDS, Policy, checked_rewards
from pipeline.chain.world import CLICK, DETAIL, LEAVE, NOTHING, State
from pipeline.chain.worlds.tabular import Tabular

_SAME = 1e-9  # an action must be better by so much to be another


class Exact:
    """The S states of a world and what each item leads to.

    A policy is a table of items (S,), a table of chances (S, I) float64, or a function of states. Of the history, a
    function sees the marker of the type only.

    Args:
        world: with I items and T types.
        rewards: of skip, click, order and leave.

    Attributes:
        states: all S states that agents can tell apart, with the history of a first step.
        users: (S,) their types.
    """

    def __init__(self, world: Tabular, rewards: Sequence[float] = REWARDS) -> None:
        self.world = world
        types, contexts, skips, items, _ = world.table.shape
        self._shape = types, contexts, skips
        number = types * contexts * skips
        places = torch.arange(number)
        self.users = places // (contexts * skips)
        shown = places // skips % contexts - 1
        history = world.entrance(self.users).history
        self.states = State(history, (shown != NOTHING).long() * DETAIL, shown, places % skips)
        self._chances = world.table.reshape(number, items, 4)
        self._gain = self._chances @ checked_rewards(rewards).double()  # (S, I) expected immediate reward
        self._next = self._successors(items)

    def _successors(self, items: int) -> Tensor:
        """(S, I, 3): the states that follow a skip, a click and an order."""
        number = len(self.users)
        rows = torch.arange(number).repeat_interleave(items)
        actions = torch.arange(items).repeat(number)
        after = [
            self._place(self.users[rows], self.states[rows].after(actions, torch.full_like(actions, feedback)))
            for feedback in range(LEAVE)
        ]
        return torch.stack(after, 1).view(number, items, LEAVE)

    def _place(self, users: Tensor, state: State) -> Tensor:
        """The numbers of states (B,) of users (B,)."""
        _, contexts, skips = self._shape
        return (users * contexts + state.shown + 1) * skips + state.skips.clamp(max=skips - 1)

    def value(self, policy: Tensor | Policy) -> float:
        """The expected reward of a session, over the types."""
        return self._of_session(self.values(policy))

    def values(self, policy: Tensor | Policy) -> Tensor:
        """(S,) float64: the expected reward from each state to the end."""
        return self._solved(self._weights(policy), self._chances)

    def action_values(self, values: Tensor) -> Tensor:
        """(S, I): the expected reward of each item, if the states that follow are worth values (S,)."""
        return self._ahead(values, self._chances)

    def optimal(self) -> Tensor:
        """(S,) the items of the best policy."""
        return self._improved(self._chances)

    def myopic(self) -> Tensor:
        """(S,) the items of the highest expected immediate reward."""
        return self._gain.argmax(1)

    def independent(self) -> Tensor:
        """(S,) the items of two agents, each the best for the reward on its own page if the session ended with it."""
        own = self._chances.clone()
        same = self.states.page[self._next] == self.states.page[:, None, None]
        own[..., :LEAVE] *= same
        return self._improved(own)

    def popular(self) -> Tensor:
        """(S,) on each page, the item that users click most there, on average over types and shown items."""
        clicks = torch.stack([self._chances[self.states.page == page, :, CLICK].mean(0) for page in range(2)])
        return clicks.argmax(1)[self.states.page]

    def random(self) -> Tensor:
        """(S, I) the same chance for each item."""
        return torch.full_like(self._gain, 1 / self._gain.shape[1])

    def as_function(self, policy: Tensor) -> Policy:
        """A table of items (S,) as a function of states whose history begins with a marker."""
        types = torch.full((self.world.items,), NOTHING)
        types[self.world.markers] = torch.arange(len(self.world.markers))

        def act(state: State) -> Tensor:
            first = state.history.gather(1, (state.history != NOTHING).int().argmax(1, keepdim=True))[:, 0]
            users = types[first]
            if (users == NOTHING).any():
                raise ValueError("a history no longer starts with a marker; make the world's history longer")
            return policy[self._place(users, state)]

        return act

    def _of_session(self, values: Tensor) -> float:
        users = torch.arange(self.world.types)
        return float(values[self._place(users, self.world.entrance(users))].mean())

    def _weights(self, policy: Tensor | Policy) -> Tensor:
        """(S, I) float64."""
        table = policy if isinstance(policy, Tensor) else policy(self.states)
        if table.dim() == 1:
            return torch.nn.functional.one_hot(table, self.world.items).double()
        if table.shape != self._gain.shape or not ((table.sum(1) - 1).abs() < 1e-5).all():
            raise ValueError(
                f"a policy must be items of shape ({len(self.users)},) or chances of shape {tuple(self._gain.shape)} "
                f"that sum to 1, got shape {tuple(table.shape)}"
            )
        return table.double()

    def _solved(self, weights: Tensor, chances: Tensor) -> Tensor:
        """(S,) v = r + P v, where chances (S, I, 4) lead to other states."""
        number = len(weights)
        flow = (weights[..., None] * chances[..., :LEAVE]).flatten(1)
        moves = torch.zeros(number, number, dtype=torch.float64).scatter_add_(1, self._next.flatten(1), flow)
        gain = (weights * self._gain).sum(1)
        return torch.linalg.solve(torch.eye(number, dtype=torch.float64) - moves, gain)

    def _ahead(self, values: Tensor, chances: Tensor) -> Tensor:
        return self._gain + (chances[..., :LEAVE] * values[self._next]).sum(-1)

    def _improved(self, chances: Tensor) -> Tensor:
        """(S,) the best items by policy iteration, from the myopic ones; of equal items, the one that came first."""
        items = self.myopic()
        while True:
            ahead = self._ahead(self._solved(self._weights(items), chances), chances)
            best, better = ahead.max(1)
            changed = best > ahead.gather(1, items[:, None])[:, 0] + _SAME
            if not changed.any():
                return items
            items = torch.where(changed, better, items)
