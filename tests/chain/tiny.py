"""A world of six items and two types of users, small enough for its optimum to be enumerated here.

Items 0 and 1 are baits for types 0 and 1: clicked most on the entrance page, but their detail page leads nowhere. Items
2 and 3 are modest: clicked less, but on their detail page items 4 and 5 are ordered. The first item of the history, 4
or 5, tells the type. Skips in a row make users leave.
"""

from itertools import product

import torch
from torch import Tensor

from pipeline.chain.logs import Log, collect
from pipeline.chain.policies import anything
from pipeline.chain.world import CLICK, ENTRANCE, NOTHING, ORDER, SKIP, State, World

ITEMS, TYPES, PATIENCE, HISTORY = 6, 2, 2, 4
REWARDS = torch.tensor([0.0, 1.0, 5.0, 0.0])
SHOWN = range(NOTHING, ITEMS)  # NOTHING: the entrance page


def _chances() -> Tensor:
    """(types, shown + 1, skips, items, 4)."""
    table = torch.zeros(TYPES, len(SHOWN), PATIENCE + 1, ITEMS, 4, dtype=torch.float64)
    for kind, shown, skips, item in product(range(TYPES), SHOWN, range(PATIENCE + 1), range(ITEMS)):
        leave = 0.1 + 0.1 * skips
        click, order = 0.05, 0.01
        if shown == NOTHING:
            click = {kind: 0.65, 2 + kind: 0.45}.get(item, 0.05)
        elif shown in (2, 3):
            order = 0.5 if item == 4 + kind else 0.01
            click = 0.3 if item == shown else 0.05
        else:
            leave = 0.6
        table[kind, shown, skips, item] = torch.tensor([1 - click - order - leave, click, order, leave])
    return table


CHANCES = _chances()


class Tiny(World):
    """The world of this file; item vectors are one-hot."""

    vectors = torch.eye(ITEMS)

    def start(self, sessions: int, generator: torch.Generator) -> tuple[State, Tensor]:
        users = torch.randint(TYPES, (sessions,), generator=generator)
        history = torch.full((sessions, HISTORY), NOTHING)
        history[:, -1] = 4 + users
        nothing, zero = torch.full((sessions,), NOTHING), torch.zeros(sessions, dtype=torch.int64)
        return State(history, torch.full((sessions,), ENTRANCE), nothing, zero), users

    def chances(self, users: Tensor, state: State, actions: Tensor) -> Tensor:
        return CHANCES[users, state.shown, state.skips.clamp(max=PATIENCE), actions].float()


def optimum() -> float:
    """The reward of a session under the best policy that knows the types, by value iteration in plain Python."""
    values = dict.fromkeys(product(range(TYPES), SHOWN, range(PATIENCE + 1)), 0.0)

    def worth(kind: int, shown: int, skips: int, item: int) -> float:
        p = CHANCES[kind, shown, skips, item].tolist()
        skipped = values[kind, NOTHING, min(skips + 1, PATIENCE)]
        return p[SKIP] * skipped + p[CLICK] * (1 + values[kind, item, 0]) + p[ORDER] * (5 + values[kind, NOTHING, 0])

    for _ in range(200):
        values = {key: max(worth(*key, item) for item in range(ITEMS)) for key in values}
    return sum(values[kind, NOTHING, 0] for kind in range(TYPES)) / TYPES


def random_log(transitions: int, seed: int) -> Log:
    """Some transitions of sessions with random items; `collect` begins with the first steps of many sessions."""
    log = collect(Tiny(), anything(ITEMS, seed), transitions + 10_000, seed)
    return log[torch.randperm(len(log), generator=torch.Generator().manual_seed(seed))[:transitions]]
