"""The memory of transitions that learners draw from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.chain.logs import Log
from pipeline.chain.world import LEAVE, State


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

    def add(self, log: Log, chances: Tensor | None = None) -> None:
        """Append T log.

        Args:
            log: of at most ``capacity`` transitions.
            chances: (T, 4) of each feedback; zero if None.

        Raises:
            ValueError: if there are more than the capacity.
        """
        number = len(log)
        if number > self.capacity:
            raise ValueError(
                f"{number:,} transitions do not fit into a replay of {self.capacity:,}; raise its capacity"
            )
        places = (self.added + torch.arange(number)) % self.capacity
        state = log.state
        columns = (state.page, state.shown, state.skips, log.actions, log.feedback)
        self._rows[places] = torch.cat([state.history, torch.stack(columns, 1)], 1)
        self._chances[places] = 0.0 if chances is None else chances
        self.added += number

    def sample(self, number: int, generator: torch.Generator) -> tuple[Log, Tensor]:
        """Transitions drawn with replacement, and the chances (number, 4)."""
        places = torch.randint(len(self), (number,), generator=generator)
        rows = self._rows[places]
        page, shown, skips, actions, feedback = rows[:, -5:].unbind(1)
        state = State(rows[:, :-5], page, shown, skips)
        return Log(state, actions, feedback), self._chances[places]

    def state_dict(self) -> dict[str, Any]:
        """Everything, for a checkpoint."""
        used = len(self)
        return {"added": self.added, "rows": self._rows[:used], "chances": self._chances[:used]}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Become what `state_dict` told of."""
        self.added = saved["added"]
        used = len(saved["rows"])
        self._rows[:used], self._chances[:used] = saved["rows"], saved["chances"]
