"""The sessions of a world as a vector environment of Gymnasium."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from pipeline.chain.sessions import REWARDS, Sessions
from pipeline.chain.world import LEAVE, NOTHING, State, World

Observation = dict[str, np.ndarray]


class SessionsEnv(VectorEnv[Observation, np.ndarray, np.ndarray]):
    """B sessions, of which each is followed by a new one in the same step.

    An observation holds the attributes of `State`. An action is an item. A session that its user leaves is terminated,
    and the longest is truncated. The info of a step holds ``feedback`` (B,) and, as `AutoresetMode.SAME_STEP` asks, the
    last observations of sessions that ended as ``final_obs``.

    Args:
        world: that the sessions take place in.
        number: B.
        longest, rewards: see `Sessions`.
        seed: of the sessions before the first reset; each reset that names no seed takes the next one.
    """

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}  # noqa: RUF012, as in VectorEnv

    def __init__(
        self, world: World, number: int, longest: int = 100, rewards: Sequence[float] = REWARDS, seed: int = 0
    ) -> None:
        self.num_envs = number
        self._world, self._longest, self._rewards, self._seed = world, longest, rewards, seed
        self._sessions = self._made(seed)
        history = self._sessions.state.history.shape[1]
        self.single_observation_space = spaces.Dict(
            {
                "history": spaces.Box(NOTHING, world.items - 1, (history,), np.int64),
                "page": spaces.Discrete(2),
                "shown": spaces.Discrete(world.items + 1, start=NOTHING),
                "skips": spaces.Discrete(longest + 1),
            }
        )
        self.single_action_space = spaces.Discrete(world.items)
        self.observation_space = batch_space(self.single_observation_space, number)
        self.action_space = batch_space(self.single_action_space, number)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """New sessions in all places. Without a seed, they are others than before.

        Raises:
            ValueError: for options; there are none.
        """
        if options:
            raise ValueError(f"sessions have no options to reset, got {', '.join(options)}")
        super().reset(seed=seed)
        self._seed = self._seed + 1 if seed is None else seed
        self._sessions = self._made(self._seed)
        return _observed(self._sessions.state), {}

    def step(self, actions: np.ndarray) -> tuple[Observation, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Recommend items (B,): observation, reward, terminated, truncated and info."""
        before, items = self._sessions.state, torch.as_tensor(np.asarray(actions)).long()
        feedback, reward, ended = self._sessions.step(items)
        left = feedback == LEAVE
        info: dict[str, Any] = {"feedback": feedback.numpy()}
        if ended.any():
            info |= _final(_observed(before.after(items, feedback)), ended.numpy())
        return _observed(self._sessions.state), reward.double().numpy(), left.numpy(), (ended & ~left).numpy(), info

    def _made(self, seed: int) -> Sessions:
        return Sessions(self._world, self.num_envs, seed, self._longest, self._rewards)


def _observed(state: State) -> Observation:
    return {name: getattr(state, name).numpy().copy() for name in ("history", "page", "shown", "skips")}


def _final(last: Observation, ended: np.ndarray) -> dict[str, Any]:
    observations = np.full(len(ended), None, dtype=object)
    for place in ended.nonzero()[0]:
        observations[place] = {name: values[place] for name, values in last.items()}
    return {"final_obs": observations, "_final_obs": ended, "final_info": {}, "_final_info": ended}
