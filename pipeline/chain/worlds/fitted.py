"""A world of real users: what they like is data, how they answer is assumed.

Data: which user of an encoded folder interacted with which item (`pipeline.chain.people`); and, by default or from a
file, how often the visitors of a real shop went on to a detail page and left (`pipeline.chain.rates`). Nothing is known
of the same users' sessions: the two data sets have nothing to do with each other.

Assumptions: the form of the chances. With the levels b by page, see `pipeline.chain.calibrated`,

taken = sigmoid(a liking - b)                       on the entrance page
taken = sigmoid(a liking + c alike - b)             on the detail page, where alike is the similarity to the shown item
left  = sigmoid(b' + d skips)

a is measured; c, d, and what a logit loses when the item is in the history already, are options. The shop's logs agree
only in part: leaving rises from 0.11 after the first page in a row that is no detail page to 0.15 after the second, and
then stays, and it is clicks that fall further.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.chain.calibrated import Basis, Calibrated, Sizes
from pipeline.chain.people import Half
from pipeline.chain.world import State
from pipeline.workflow.validation import Count, Rate

_PATIENCE = 5  # skips in a row from which more of them change nothing
TESTS = {"test": ("fitted", {"half": "test"}), "shifted": ("shifted", {"half": "test"})}


class Fitted(Calibrated):
    """Smooth answers, see above.

    Args:
        basis: see `Calibrated`.
        alike: c.
        repeated: what the logit of an item loses that is in the history.
        impatience: d.
    """

    def __init__(self, basis: Basis, alike: float, repeated: float, impatience: float) -> None:
        self._alike, self._repeated, self._impatience = alike, repeated, impatience
        super().__init__(basis)

    def appeal(self, users: Tensor, state: State, actions: Tensor) -> Tensor:
        like = self.people.slope * self.people.liking[users, actions]
        near = self.people.alike[state.shown.clamp(min=0), actions] * (state.shown >= 0)
        again = (state.history == actions[:, None]).any(1)
        return like + self._alike * near - self._repeated * again

    def taken(self, appeal: Tensor, level: Tensor) -> Tensor:
        return torch.sigmoid(appeal - level)

    def left(self, state: State, level: Tensor) -> Tensor:
        return torch.sigmoid(level + self._impatience * state.skips.clamp(max=_PATIENCE))


def make(
    seed: int,
    *,
    folder: str | None = None,
    half: Half = "learn",
    clickstream: str | None = None,
    dim: Count = 32,
    users: Count = 4000,
    items: Count = 120,
    history: Count = 20,
    known: Count = 10,
    longest: Count = 100,
    alike: Rate = 2.0,
    repeated: Rate = 10.0,
    impatience: Rate = 0.3,
) -> Fitted:
    """A world of one half of the users.

    Args:
        folder: encoded interactions; None for users that are made up, see `pipeline.chain.people.planted`.
        half: ``learn`` for the sessions that agents learn from, ``test`` for those that they are tested on.
        clickstream: ``sessions.npz``, see `measured`; None for the rates that were measured in it once.
        dim: D, of the vectors.
        users: of more, so many are drawn. So many planted users are in both halves together.
        items: of planted users.
        history: N.
        known: items of the history at the start.
        longest: steps of the sessions that calibrate; as long as those that follow.
        alike, repeated, impatience: see `Fitted`.
    """
    lengths = {"history": history, "known": known, "longest": longest}
    return Fitted(
        Basis.of(seed, folder, half, clickstream, Sizes(dim, users, items), **lengths), alike, repeated, impatience
    )
