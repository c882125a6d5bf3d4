"""Worlds of real users whose mean rates are given."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from scipy.optimize import bisect
from torch import Tensor

from pipeline.chain.logs import Exploring
from pipeline.chain.people import Half, People, encoded, people, planted
from pipeline.chain.rates import Rates, measured
from pipeline.chain.sessions import Sessions
from pipeline.chain.world import DETAIL, ENTRANCE, NOTHING, State, World

_SESSIONS = 3000  # of a round of the calibration
_ROUNDS = 6
_LEVELS = (-30.0, 30.0)  # that are tried
_ORDER_SLOPE = 0.5  # of the logit of an order among items that are taken, per unit of liking


class Sizes(NamedTuple):
    """Of a world of users.

    Args:
        dim: D, of the items' vectors.
        users: at most; of planted users, of both halves.
        items: of planted users.
    """

    dim: int
    users: int
    items: int


@dataclass(frozen=True, eq=False)
class Basis:
    """What worlds of real users have in common.

    Args:
        people: U users and I items.
        rates: of the sessions.
        history: N.
        known: items of the history at the start, at most N; fewer if the user has fewer.
        seed: of the sessions that calibrate.
        longest: steps of these sessions.

    Raises:
        ValueError: if the history is too short.
    """

    people: People
    rates: Rates
    history: int
    known: int
    seed: int
    longest: int

    def __post_init__(self) -> None:
        if self.known > self.history:
            raise ValueError(f"known must be at most the length of the history, {self.history}, got {self.known}")

    @classmethod
    def of(
        cls, seed: int, folder: str | None, half: Half, clickstream: str | None, sizes: Sizes, **lengths: int
    ) -> Basis:
        """Users and rates from their files, or made up; see `pipeline.chain.worlds.fitted.make`. ``lengths`` are
        ``history``, ``known`` and ``longest``."""
        rates = Rates() if clickstream is None else measured(Path(clickstream))
        users = planted(seed, sizes.users, sizes.items) if folder is None else encoded(Path(folder))
        return cls(people(users, half, seed, sizes.dim, sizes.users), rates, seed=seed, **lengths)


class Calibrated(World):
    """Users who leave or stay; who stays takes the item or skips it; who takes it orders it or clicks.

    chance of leaving = left
    chance of click   = (1 - left) taken (1 - ordered)
    chance of order   = (1 - left) taken ordered

    ``taken`` and ``left`` are those of the subclass, each with a level for each page. That the item does not make its
    user leave at once, but only by skips in a row and by the page that follows, is an assumption; without it the
    sessions of a good policy would hardly end. ``ordered`` is sigmoid(0.5 liking + a level), an assumption, too: the
    public data do not tell. The five levels are such that the mean chances
    are the given rates when items are recommended in proportion to their popularity, on both pages.

    Nobody takes an item again, so policies do not recommend what is in the history.

    A session's user is drawn at random, and its history starts with items that the user has, in random order.

    Args:
        basis: users, rates and lengths.

    Raises:
        ValueError: if no levels give the rates.
    """

    repeats = False

    def __init__(self, basis: Basis) -> None:
        items = len(basis.people.vectors)
        if basis.history >= items:
            raise ValueError(f"a history of {basis.history} items leaves none of {items} to recommend; shorten it")
        self.people, self.vectors = basis.people, basis.people.vectors
        self._history, self._known = basis.history, basis.known
        self.taking, self.leaving, self.ordering = torch.zeros(2), torch.zeros(2), torch.zeros(())
        reference = Exploring(basis.people.popularity, 0.0, basis.seed)
        for turn in range(_ROUNDS):
            self._calibrate(basis.rates, *self._seen(reference, basis.seed + turn, basis.longest))

    @abstractmethod
    def appeal(self, users: Tensor, state: State, actions: Tensor) -> Tensor:
        """(B,): how attractive items (B,) are."""

    @abstractmethod
    def taken(self, appeal: Tensor, level: Tensor) -> Tensor:
        """(B,): the chance that users who stay take items of an appeal (B,); it falls with the level (B,)."""

    @abstractmethod
    def left(self, state: State, level: Tensor) -> Tensor:
        """(B,): the chance to leave; it rises with the level (B,)."""

    def start(self, sessions: int, generator: torch.Generator) -> tuple[State, Tensor]:
        starts = self.people.starts
        users = torch.randint(len(starts) - 1, (sessions,), generator=generator)
        number = starts[users + 1] - starts[users]
        first = (torch.rand(sessions, generator=generator) * number).long()
        history = torch.full((sessions, self._history), NOTHING)
        for place in range(self._known):
            item = self.people.known[starts[users] + (first + place) % number]
            history[:, self._history - 1 - place] = torch.where(place < number, item, NOTHING)
        page, shown = torch.full_like(users, ENTRANCE), torch.full_like(users, NOTHING)
        return State(history, page, shown, torch.zeros_like(users)), users

    def chances(self, users: Tensor, state: State, actions: Tensor) -> Tensor:
        left = self.left(state, self.leaving[state.page])
        taken = (1 - left) * self.taken(self.appeal(users, state, actions), self.taking[state.page])
        ordered = taken * self._ordered(self.people.liking[users, actions], self.ordering)
        return torch.stack([1 - taken - left, taken - ordered, ordered, left], 1).clamp(min=0)

    def _ordered(self, liking: Tensor, level: Tensor) -> Tensor:
        return torch.sigmoid(_ORDER_SLOPE * liking + level)

    def _seen(self, reference: Exploring, seed: int, longest: int) -> tuple[Tensor, State, Tensor]:
        """Users, states and items (n,) of whole sessions under a policy."""
        sessions = Sessions(self, _SESSIONS, seed, longest, renew=False)
        seen = []
        while not sessions.over.all():
            going = (~sessions.over).nonzero()[:, 0]
            users, state, actions = sessions.users[going], sessions.state[going], reference(sessions.state)
            seen.append((users, state.history, state.page, state.shown, state.skips, actions[going]))
            sessions.step(actions)
        users, history, page, shown, skips, items = (torch.cat(parts) for parts in zip(*seen, strict=True))
        return users, State(history, page, shown, skips), items

    def _calibrate(self, rates: Rates, users: Tensor, state: State, actions: Tensor) -> None:
        """Set the levels so that the mean chances in some states are the rates."""
        appeal, liking = self.appeal(users, state, actions), self.people.liking[users, actions]
        taken = torch.zeros(len(users))
        for page in (ENTRANCE, DETAIL):
            here = state.page == page
            looks, place = appeal[here], state[here.nonzero()[:, 0]]
            self.leaving[page] = _level(partial(self.left, place), rates.leave[page], "leaving")
            stays = 1 - self.left(place, self.leaving[page])
            wanted = rates.click[page] * (1 + rates.order)
            self.taking[page] = _level(partial(self._taking, looks, stays), wanted, "clicks")
            taken[here] = self._taking(looks, stays, self.taking[page])
        wanted = rates.order / (1 + rates.order) * float(taken.mean())
        self.ordering = _level(lambda level: taken * self._ordered(liking, level), wanted, "orders")

    def _taking(self, appeal: Tensor, stays: Tensor, level: Tensor) -> Tensor:
        return stays * self.taken(appeal, level)


def _level(chances: Callable[[Tensor], Tensor], rate: float, name: str) -> Tensor:
    """The level at which the mean of chances, which rise or fall with it, is a rate.

    Raises:
        ValueError: if there is none.
    """

    def off(level: float) -> float:
        return float(chances(torch.tensor(level)).double().mean()) - rate

    ends = off(_LEVELS[0]), off(_LEVELS[1])
    if not min(ends) < 0 < max(ends):
        low, high = sorted(end + rate for end in ends)
        raise ValueError(
            f"no level gives a mean rate of {rate:.3g} for {name}: this world has {low:.3g} to {high:.3g}; change the "
            "rates or the options of the world"
        )
    return torch.tensor(bisect(off, *_LEVELS, xtol=1e-6))
