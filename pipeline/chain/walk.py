"""Sessions that agents walk through in a world: to learn from, and to say what a policy earns."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.chain.replay import Transitions, joined
from pipeline.chain.world import LEAVE, State, World

Policy = Callable[[State], Tensor]  # the states of B sessions -> their items (B,)


class Walk:
    """Sessions side by side; a new one starts where a user leaves.

    Args:
        world: whose users act.
        sessions: B.
        seed: of the users and their feedback.
        longest: steps after which a session is broken off, so that no policy is stuck with few users.
    """

    def __init__(self, world: World, sessions: int, seed: int, longest: int = 200) -> None:
        self.world, self.longest = world, longest
        self._generator = torch.Generator().manual_seed(seed)
        self._state, self._users = world.start(sessions, self._generator)
        self._ages = torch.zeros(sessions, dtype=torch.int64)

    def step(self, policy: Policy) -> Transitions:
        """One step of every session: B transitions."""
        state, actions = self._state, policy(self._state)
        chances = self.world.chances(self._users, state, actions)
        feedback = torch.multinomial(chances, 1, generator=self._generator).squeeze(1)
        self._state, self._ages = state.after(actions, feedback), self._ages + 1
        over = (feedback == LEAVE) | (self._ages >= self.longest)
        if number := int(over.sum()):
            self._renew(over, number)
        return Transitions(state, actions, feedback)

    def _renew(self, over: Tensor, number: int) -> None:
        fresh, users = self.world.start(number, self._generator)
        places = torch.arange(len(over))
        places[over] = len(over) + torch.arange(number)
        self._state = joined([self._state, fresh])[places]
        self._users = torch.cat([self._users, users])[places]
        self._ages = torch.where(over, 0, self._ages)

    def state_dict(self) -> dict[str, Any]:
        """Everything but the world, for a checkpoint."""
        generator = self._generator.get_state()
        return {"state": asdict(self._state), "users": self._users, "ages": self._ages, "generator": generator}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Become what `state_dict` told of."""
        self._state, self._users, self._ages = State(**saved["state"]), saved["users"], saved["ages"]
        self._generator.set_state(saved["generator"])


@dataclass(frozen=True)
class Earned:
    """What a policy earns.

    Args:
        mean: reward of a session.
        error: standard error of ``mean``.
        steps: mean steps of a session.
        unfinished: share of the sessions that were broken off; their reward so far counts.
    """

    mean: float
    error: float
    steps: float
    unfinished: float


@torch.no_grad()
def earned(world: World, policy: Policy, rewards: Tensor, *, sessions: int, seed: int, longest: int = 200) -> Earned:
    """The reward, without a discount, that a policy earns in a session.

    Args:
        world: whose users act.
        policy: that recommends.
        rewards: (4,) of skip, click, order and leave.
        sessions: number of sessions.
        seed: of the users and their feedback.
        longest: steps after which a session is broken off.
    """
    generator = torch.Generator().manual_seed(seed)
    state, users = world.start(sessions, generator)
    totals, steps = torch.zeros(sessions, dtype=torch.float64), torch.zeros(sessions, dtype=torch.float64)
    going = torch.arange(sessions)
    for _ in range(longest):
        actions = policy(state)
        chances = world.chances(users, state, actions)
        feedback = torch.multinomial(chances, 1, generator=generator).squeeze(1)
        totals[going] += rewards.double()[feedback]
        steps[going] += 1
        stays = (feedback != LEAVE).nonzero().squeeze(1)
        state, users, going = state.after(actions, feedback)[stays], users[stays], going[stays]
        if not len(going):
            break
    error = float(totals.std()) / math.sqrt(sessions) if sessions > 1 else math.nan
    return Earned(float(totals.mean()), error, float(steps.mean()), len(going) / sessions)
