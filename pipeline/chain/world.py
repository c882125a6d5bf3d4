"""Sessions on two pages: a feed, the entrance page, and the detail page of an item with related items.

At each step an agent recommends one item. The user skips it, clicks it, orders it or leaves; see `State.after` for
where that leads. A world says how likely each of these is. It is a simulation: its file says what in it is data and
what is assumed.

Zhao, Xia, Zou, Liu, Yin, Tang 2020, Whole-Chain Recommendations, CIKM, arXiv 1902.03987 (DeepChain).
NOTE[DIFF]: the paper's data and code are private, so all equations are reconstructed.
NOTE[DIFF]: an order is an outcome of its own, with its own chance, so that the targets are expectations over it, too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

ENTRANCE, DETAIL = range(2)  # pages
SKIP, CLICK, ORDER, LEAVE = range(4)  # what a user does
NOTHING = -1  # the place of an item where there is none


@dataclass(frozen=True)
class State:
    """What agents see of B sessions.

    Args:
        history: (B, N) int64, the last items that the user clicked or ordered, the latest last; `NOTHING` before them.
        page: (B,) int64, `ENTRANCE` or `DETAIL`.
        shown: (B,) int64, the item of the detail page; `NOTHING` on the entrance page.
        skips: (B,) int64, how many items in a row were skipped.
    """

    history: Tensor
    page: Tensor
    shown: Tensor
    skips: Tensor

    def __len__(self) -> int:
        return len(self.page)

    def __getitem__(self, rows: Tensor) -> State:
        return State(self.history[rows], self.page[rows], self.shown[rows], self.skips[rows])

    def without_history(self, scores: Tensor) -> Tensor:
        """Scores (B, I) of items, with -inf for those of the history."""
        items = scores.shape[1]
        places = torch.where(self.history == NOTHING, items, self.history)
        wide = torch.cat([scores, scores.new_zeros(len(scores), 1)], 1)
        return wide.scatter(1, places, -torch.inf)[:, :items]

    def after(self, actions: Tensor, feedback: Tensor) -> State:
        """The state that follows when items (B,) meet feedback (B,).

        A click leads to the item's detail page, and an order back to the entrance page; both join the history. A skip
        leads to the entrance page. Nothing follows when the user leaves; the state then stays as it is.
        """
        taken = (feedback == CLICK) | (feedback == ORDER)
        moved = torch.cat([self.history[:, 1:], actions[:, None]], 1)
        history = torch.where(taken[:, None], moved, self.history)
        left, clicked = feedback == LEAVE, feedback == CLICK
        page = torch.where(clicked, DETAIL, ENTRANCE)
        shown = torch.where(clicked, actions, NOTHING)
        skips = torch.where(feedback == SKIP, self.skips + 1, 0)
        return State(
            history,
            torch.where(left, self.page, page),
            torch.where(left, self.shown, shown),
            torch.where(left, self.skips, skips),
        )


class World(ABC):
    """How users behave. A world is one file in ``pipeline/chain/worlds``.

    Attributes:
        vectors: (I, D) float32, the items as agents see them; frozen.
        repeats: whether policies may recommend an item of the history.
    """

    vectors: Tensor
    repeats = True

    @property
    def items(self) -> int:
        """I."""
        return len(self.vectors)

    @abstractmethod
    def start(self, sessions: int, generator: torch.Generator) -> tuple[State, Tensor]:
        """The first states of new sessions, on the entrance page, and their users (B,) int64, unknown to agents."""

    @abstractmethod
    def chances(self, users: Tensor, state: State, actions: Tensor) -> Tensor:
        """(B, 4): the probability of skip, click, order and leave when items (B,) are recommended."""
