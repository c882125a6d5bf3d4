"""Logs of sessions: what was recommended in which state, and what the user did.

Agents that learn off-policy learn from logs, so the policy that writes them must explore: it recommends a random item
now and then, and else an item in proportion to its popularity. Its chances are known.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.chain.sessions import Policy, Sessions
from pipeline.chain.world import CLICK, LEAVE, ORDER, State, World
from pipeline.workflow.outputs import whole

_AT_ONCE = 1000  # sessions
_STATE = ("history", "page", "shown", "skips")


@dataclass(frozen=True, eq=False)
class Log:
    """n transitions.

    Args:
        state: n states before.
        actions: (n,) int64, items that were recommended.
        feedback: (n,) int64.
        chances: (n, 4) of the feedback in the world, which agents do not know; None where they are not kept. A file
            does not hold them.
    """

    state: State
    actions: Tensor
    feedback: Tensor
    chances: Tensor | None = None

    def __len__(self) -> int:
        return len(self.actions)

    def __getitem__(self, rows: Tensor) -> Log:
        chances = None if self.chances is None else self.chances[rows]
        return Log(self.state[rows], self.actions[rows], self.feedback[rows], chances)

    @property
    def after(self) -> State:
        """The n states after; those of users who left are as before."""
        return self.state.after(self.actions, self.feedback)

    def save(self, path: Path) -> None:
        """Write a safetensors file, whole or not at all; items take 4 bytes each."""
        tensors = {name: getattr(self.state, name) for name in _STATE}
        tensors |= {"actions": self.actions, "feedback": self.feedback}
        with whole(path) as draft:
            save_file({name: tensor.int().contiguous() for name, tensor in tensors.items()}, draft)

    @classmethod
    def load(cls, path: Path) -> Log:
        """The log in a file that `save` wrote.

        Raises:
            ValueError: naming the file, if it holds no log.
            FileNotFoundError: if there is no such file.
        """
        try:
            tensors = {name: tensor.long() for name, tensor in load_file(path).items()}
            log = cls(State(*(tensors[name] for name in _STATE)), tensors["actions"], tensors["feedback"])
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"{path}: is no log of sessions ({error}); collect it again") from error
        number, rows = len(log.actions), "its tensors differ in their numbers of rows"
        if log.state.history.dim() != 2 or any(len(tensor) != number for tensor in tensors.values()):
            raise ValueError(f"{path}: is no log of sessions ({rows}); collect it again")
        return log


class Exploring:
    """A policy that recommends a random item with a chance, and else an item in proportion to its popularity.

    Args:
        popularity: (I,) at least 0, e.g. numbers of clicks.
        epsilon: chance of a random item, from 0 to 1.
        seed: of the choices.

    Attributes:
        probabilities: (I,) float64, the chance of each item in any state.

    Raises:
        ValueError: if these are no chances.
    """

    def __init__(self, popularity: Tensor, epsilon: float, seed: int) -> None:
        total = popularity.double().sum()
        if not 0 <= epsilon <= 1:
            raise ValueError(f"epsilon must be from 0 to 1, got {epsilon}")
        if not (popularity >= 0).all() or not (total > 0 and total.isfinite()):
            raise ValueError("the popularity of items must be at least 0, and above 0 for one of them")
        self.probabilities = (1 - epsilon) * popularity.double() / total + epsilon / len(popularity)
        self._bounds = self.probabilities.cumsum(0)
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, state: State) -> Tensor:
        luck = torch.rand(len(state), generator=self._generator, dtype=torch.float64) * self._bounds[-1]
        return torch.searchsorted(self._bounds, luck, right=True).clamp(max=len(self._bounds) - 1)


def steps(world: World, policy: Policy, transitions: int, seed: int, longest: int = 100) -> Iterator[Log]:
    """The first transitions of sessions that take place at the same time, step by step, with their chances.

    Args:
        world, policy: who meets.
        transitions: n, at least 1.
        seed, longest: see `Sessions`.
    """
    if transitions < 1:
        raise ValueError(f"transitions of a log must be at least 1, got {transitions}")
    number = min(_AT_ONCE, transitions)
    sessions = Sessions(world, number, seed, longest)
    for start in range(0, transitions, number):
        before, users, actions = sessions.state, sessions.users, policy(sessions.state)
        feedback, _, _ = sessions.step(actions)
        kept = torch.arange(min(number, transitions - start))
        yield Log(before, actions, feedback, world.chances(users, before, actions))[kept]


def collect(world: World, policy: Policy, transitions: int, seed: int, longest: int = 100) -> Log:
    """The transitions of `steps` as one log."""
    parts = steps(world, policy, transitions, seed, longest)
    first = next(parts)
    length = first.state.history.shape[1]
    state = State(torch.empty(transitions, length, dtype=torch.int64), *torch.empty(3, transitions, dtype=torch.int64))
    actions, feedback = torch.empty(2, transitions, dtype=torch.int64)
    chances = torch.empty(transitions, LEAVE + 1)
    start = 0
    for part in itertools.chain([first], parts):
        rows = slice(start, start + len(part))
        for name in _STATE:
            getattr(state, name)[rows] = getattr(part.state, name)
        assert part.chances is not None
        actions[rows], feedback[rows], chances[rows] = part.actions, part.feedback, part.chances
        start = rows.stop
    return Log(state, actions, feedback, chances)


def popularity(log: Log, items: int) -> Tensor:
    """(I,) float64: the share of its recommendations in which each item was clicked or ordered; 0 if there are none."""
    taken = ((log.feedback == CLICK) | (log.feedback == ORDER)).double()
    shown = torch.bincount(log.actions, minlength=items)
    return torch.bincount(log.actions, taken, minlength=items) / shown.clamp(min=1)


def exploring(world: World, epsilon: float, seed: int, transitions: int = 20_000) -> Exploring:
    """A policy whose popularity comes from a log of random items in a world.

    Args:
        world: to log.
        epsilon, seed: see `Exploring`.
        transitions: of that log.
    """
    anything = Exploring(torch.ones(world.items), 1.0, seed)
    return Exploring(popularity(collect(world, anything, transitions, seed), world.items), epsilon, seed)
