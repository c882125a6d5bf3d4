"""Transitions, and the memory that learners draw them from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from pipeline.chain.world import LEAVE, State


def joined(states: Sequence[State]) -> State:
    """The sessions of several states, one after the other."""
    return State(*(torch.cat([getattr(state, f.name) for state in states]) for f in fields(State)))


@dataclass(frozen=True)
class Transitions:
    """T steps of sessions; `State.after` tells what follows each.

    Args:
        state: of T sessions.
        actions: (T,) int64, the items that were recommended.
        feedback: (T,) int64, what the users did.
    """

    state: State
    actions: Tensor
    feedback: Tensor

    def __len__(self) -> int:
        return len(self.actions)

    def __getitem__(self, rows: Tensor) -> Transitions:
        return Transitions(self.state[rows], self.actions[rows], self.feedback[rows])


class Replay:
    """The latest transitions, with how likely each feedback was.

    Args:
        capacity: transitions that are kept; the oldest go first.
        history: N, items of a history.

    Raises:
        ValueError: if there is no room for one transition.
    """

    def __init__(self, capacity: int, history: int) -> None:
        if capacity < 1:
            raise ValueError(f"the capacity of a replay must be at least 1, got {capacity}; choose more")
        self.capacity, self.added = capacity, 0
        # A history, then page, shown item, skips, action and feedback: one row, so that a batch is one lookup.
        self._rows = torch.zeros(capacity, history + 5, dtype=torch.int64)
        self._chances = torch.zeros(capacity, LEAVE + 1)

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def knows_chances(self) -> bool:
        """Whether the chances of all its transitions were given."""
        return bool(self._chances[: len(self)].any(1).all())

    def add(self, transitions: Transitions, chances: Tensor | None = None) -> None:
        """Append T transitions.

        Args:
            transitions: at most ``capacity``.
            chances: (T, 4) of each feedback; zero if None.

        Raises:
            ValueError: if there are more than the capacity.
        """
        number = len(transitions)
        if number > self.capacity:
            raise ValueError(
                f"{number:,} transitions do not fit into a replay of {self.capacity:,}; raise its capacity"
            )
        places = (self.added + torch.arange(number)) % self.capacity
        state = transitions.state
        columns = (state.page, state.shown, state.skips, transitions.actions, transitions.feedback)
        self._rows[places] = torch.cat([state.history, torch.stack(columns, 1)], 1)
        self._chances[places] = 0.0 if chances is None else chances
        self.added += number

    def sample(self, number: int, generator: torch.Generator) -> tuple[Transitions, Tensor]:
        """Transitions drawn with replacement, and the chances (number, 4)."""
        places = torch.randint(len(self), (number,), generator=generator)
        rows = self._rows[places]
        page, shown, skips, actions, feedback = rows[:, -5:].unbind(1)
        state = State(rows[:, :-5], page, shown, skips)
        return Transitions(state, actions, feedback), self._chances[places]

    def state_dict(self) -> dict[str, Any]:
        """Everything, for a checkpoint."""
        used = len(self)
        return {"added": self.added, "rows": self._rows[:used], "chances": self._chances[:used]}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Become what `state_dict` told of."""
        self.added = saved["added"]
        used = len(saved["rows"])
        self._rows[:used], self._chances[:used] = saved["rows"], saved["chances"]
