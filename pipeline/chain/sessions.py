"""Many sessions in a world, one step at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.chain.world import LEAVE, State, World

REWARDS = (0.0, 1.0, 5.0, 0.0)  # of skip, click, order and leave
Policy = Callable[[State], Tensor]  # B states -> the items (B,) to recommend


class Sessions:
    """B sessions that take place at the same time. A session ends when its user leaves, or after ``longest`` steps.

    Two instances with the same arguments and actions have the same sessions. Without ``renew``, a session also meets
    the same user and the same luck at each step whatever happens in the others, so policies can be compared in pairs.

    Args:
        world: that they take place in.
        number: B.
        seed: of users and feedback.
        longest: steps of a session.
        rewards: of skip, click, order and leave.
        renew: whether a new session takes the place of one that has ended. If not, nothing more happens in the place:
            its feedback is `LEAVE`, its reward 0.

    Attributes:
        state: B states before the next step.
        users: (B,) int64.
        steps: (B,) int64, steps that the sessions have taken.
        over: (B,) bool, which sessions have ended; all false with ``renew``.
    """

    def __init__(
        self,
        world: World,
        number: int,
        seed: int,
        longest: int = 100,
        rewards: Sequence[float] = REWARDS,
        renew: bool = True,
    ) -> None:
        for name, value in (("number", number), ("longest", longest)):
            if value < 1:
                raise ValueError(f"{name} of sessions must be at least 1, got {value}")
        self.world, self.longest, self.renew = world, longest, renew
        self._rewards = checked_rewards(rewards)
        self._generator = torch.Generator().manual_seed(seed)
        self.state, self.users = world.start(number, self._generator)
        self.steps = torch.zeros(number, dtype=torch.int64)
        self.over = torch.zeros(number, dtype=torch.bool)

    def __len__(self) -> int:
        return len(self.users)

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Recommend an item in each session.

        Args:
            actions: (B,) int64.

        Returns:
            feedback (B,) int64, reward (B,) float32, and which sessions (B,) have ended by it or, without ``renew``,
            before. A session whose feedback is not `LEAVE` has ended because it is the longest. The state that
            followed in a session that has ended is ``State.after`` of the state before.

        Raises:
            ValueError: if an item does not exist, or there is not one for each session.
        """
        self._check(actions)
        luck = torch.rand(len(self), generator=self._generator)
        bounds = self.world.chances(self.users, self.state, actions).cumsum(1)
        feedback = (luck[:, None] >= bounds[:, :LEAVE]).sum(1)
        if not self.renew:
            feedback = torch.where(self.over, LEAVE, feedback)
        reward = torch.where(self.over, 0.0, self._rewards[feedback])
        self.state = self.state.after(actions, feedback)
        self.steps = self.steps + ~self.over
        ended = (feedback == LEAVE) | (self.steps >= self.longest)
        if self.renew:
            self._renew(ended.nonzero()[:, 0])
        else:
            self.over = ended
        return feedback, reward, ended

    def _check(self, actions: Tensor) -> None:
        if actions.shape != self.users.shape or actions.dtype != torch.int64:
            raise ValueError(
                f"actions must be one int64 for each of {len(self)} sessions, got {actions.dtype} of shape "
                f"{tuple(actions.shape)}"
            )
        least, most = (int(bound) for bound in actions.aminmax())
        if least < 0 or most >= self.world.items:
            raise ValueError(f"actions must be items from 0 to {self.world.items - 1}, got {least} to {most}")

    def _renew(self, places: Tensor) -> None:
        """New sessions in some places (n,); ``state`` is not shared yet."""
        if not len(places):
            return
        state, users = self.world.start(len(places), self._generator)
        for name in ("history", "page", "shown", "skips"):
            getattr(self.state, name)[places] = getattr(state, name)
        self.users = self.users.index_copy(0, places, users)
        self.steps[places] = 0

    def state_dict(self) -> dict[str, Any]:
        """Tensors from which `load_state_dict` goes on to the bit."""
        state = {name: getattr(self.state, name).clone() for name in ("history", "page", "shown", "skips")}
        own = {name: getattr(self, name).clone() for name in ("users", "steps", "over")}
        return {"state": state, **own, "generator": self._generator.get_state()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave, of sessions with the same arguments.

        Raises:
            ValueError: if it is of another number of sessions.
        """
        if len(saved["users"]) != len(self):
            raise ValueError(f"the saved sessions are {len(saved['users'])}, and these are {len(self)}")
        self.state = State(**{name: value.clone() for name, value in saved["state"].items()})
        self.users, self.steps, self.over = (saved[name].clone() for name in ("users", "steps", "over"))
        self._generator.set_state(saved["generator"])


@dataclass(frozen=True, eq=False)
class Played:
    """What happened in sessions from start to end.

    Args:
        reward: (B,) float64, of each session.
        steps: (B,) int64.
        counts: (2, 4) int64, how often each feedback was given on each page.
    """

    reward: Tensor
    steps: Tensor
    counts: Tensor


def play(
    world: World,
    policy: Policy,
    sessions: int,
    seed: int,
    longest: int = 100,
    rewards: Sequence[float] = REWARDS,
) -> Played:
    """A policy's sessions, each from its start to its end. Policies with the same seed meet the same users. The policy
    is asked only about sessions that go on.

    Args:
        world, policy: who meets.
        sessions: B.
        seed, longest, rewards: see `Sessions`.
    """
    played = Sessions(world, sessions, seed, longest, rewards, renew=False)
    total = torch.zeros(sessions, dtype=torch.float64)
    counts = torch.zeros(2, 4, dtype=torch.int64)
    while not played.over.all():
        going, page = ~played.over, played.state.page
        places = going.nonzero().squeeze(1)
        actions = torch.zeros_like(page).index_copy(0, places, policy(played.state[places]))
        feedback, reward, _ = played.step(actions)
        total += reward
        counts += torch.bincount((page * 4 + feedback)[going], minlength=8).view(2, 4)
    return Played(total, played.steps, counts)


def checked_rewards(rewards: Sequence[float]) -> Tensor:
    """(4,) float32.

    Raises:
        ValueError: if there is not a finite number for each of skip, click, order and leave.
    """
    made = torch.tensor(list(rewards), dtype=torch.float32)
    if made.shape != (4,) or not made.isfinite().all():
        raise ValueError(f"rewards must be four finite numbers, of skip, click, order and leave, got {list(rewards)}")
    return made
