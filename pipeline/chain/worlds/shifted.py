"""The real users of `pipeline.chain.worlds.fitted` with answers of another form, and the same mean rates.

Agents that learned from smooth answers meet users with thresholds here, to see what of a win survives. Data: what users
like, and the mean rates, as there. Assumptions:

taken = 0.9 if a liking - boredom > b, else 0.05     b by page, see `pipeline.chain.calibrated`
boredom = c (1 - exp(-s))                            s, the sum of similarities to the last 5 items of the history
left = sigmoid(b' + d)                               d only after 2 or more skips in a row

So items like the shown one are no more attractive on its page, but less, as it is the last of the history; boredom
saturates, except that an item of the history is below every threshold; and patience ends at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.chain.calibrated import Basis, Calibrated, Sizes
from pipeline.chain.people import Half
from pipeline.chain.world import State
from pipeline.workflow.validation import Count, Rate

_TAKEN, _SLIP = 0.9, 0.05  # chance above and below the threshold
_LATEST = 5  # items of the history that bore
_PATIENCE = 2  # skips in a row


class Shifted(Calibrated):
    """Thresholds, see above.

    Args:
        basis: see `Calibrated`.
        boredom: c.
        impatience: d.
    """

    def __init__(self, basis: Basis, boredom: float, impatience: float) -> None:
        self._boredom, self._impatience = boredom, impatience
        super().__init__(basis)

    def appeal(self, users: Tensor, state: State, actions: Tensor) -> Tensor:
        latest = state.history[:, -_LATEST:]
        near = (self.people.alike[latest.clamp(min=0), actions[:, None]] * (latest >= 0)).sum(1)
        bored = self.people.slope * self.people.liking[users, actions] + self._boredom * torch.expm1(-near)
        return torch.where((state.history == actions[:, None]).any(1), -torch.inf, bored)

    def taken(self, appeal: Tensor, level: Tensor) -> Tensor:
        return torch.where(appeal > level, _TAKEN, _SLIP)

    def left(self, state: State, level: Tensor) -> Tensor:
        return torch.sigmoid(level + self._impatience * (state.skips >= _PATIENCE))


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
    boredom: Rate = 2.0,
    impatience: Rate = 1.5,
) -> Shifted:
    """A world of one half of the users.

    Args:
        folder, half, clickstream, dim, users, items, history, known, longest: see `pipeline.chain.worlds.fitted.make`.
        boredom, impatience: see `Shifted`.
    """
    lengths = {"history": history, "known": known, "longest": longest}
    return Shifted(Basis.of(seed, folder, half, clickstream, Sizes(dim, users, items), **lengths), boredom, impatience)
