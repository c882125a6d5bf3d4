"""A small world whose best policy is known exactly, and in which it costs much to look at the next step only.

Nothing in it is data; all chances are drawn from a seed. Users are of a few types. A session's history starts with one
item, the marker of the user's type, so agents see the type until N items are taken after it. To a type, each item has a
role; the same item has other roles for other types:

* *bait* is clicked most on the entrance page, and its detail page is dead: nothing is clicked, and many users leave;
* *chain* items are clicked less than half as often as bait. On their detail pages, two other chain items, their
  successors, are clicked often, and few users leave; so a chain is long, and has an order now and then;
* *traps* are clicked most on the detail page of a chain item, and their own detail pages are dead;
* *pressing* items are ordered often on the detail page of a chain item, and most others leave: for one page they are
  worth most, for the session less than the chain;
* the others are clicked seldom.

Therefore an agent that takes the highest immediate reward shows bait and pressing items, and so do two agents of which
each counts the reward of its own page only. On the entrance page each skip in a row lowers the chances of a click and
of an order and raises that of leaving, up to a number of skips. An item is hardly taken on its own detail page.

With the defaults, the myopic policy and two independent agents earn between 0.23 and 0.44 of the optimum, for seeds 0
to 4 and orders worth 1, 5 and 50 clicks; a random one earns 0.17 to 0.24. See `pipeline.chain.optimum`.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from pipeline.chain.world import CLICK, ENTRANCE, LEAVE, NOTHING, ORDER, SKIP, State, World
from pipeline.workflow.validation import Count, Rate, Whole

BAIT, CHAIN, TRAP, PRESSING, OTHER = range(5)  # roles
SHARES = {BAIT: 0.1, CHAIN: 0.3, TRAP: 0.2, PRESSING: 0.1}  # of the items of a type; at least one each
LEAST_ITEMS = 10
SUCCESSORS = 2  # of a chain item

Ranges = tuple[tuple[float, float], tuple[float, float], tuple[float, float]]  # of click, order and leave; uniform
ON_ENTRANCE: dict[int, Ranges] = {
    BAIT: ((0.70, 0.78), (0.00, 0.005), (0.06, 0.10)),
    CHAIN: ((0.26, 0.34), (0.00, 0.005), (0.06, 0.10)),
    TRAP: ((0.10, 0.20), (0.00, 0.01), (0.08, 0.12)),
    PRESSING: ((0.10, 0.20), (0.02, 0.04), (0.40, 0.50)),
    OTHER: ((0.05, 0.12), (0.00, 0.01), (0.08, 0.14)),
}
ON_CHAIN: dict[int, Ranges] = {  # the detail page of a chain item
    BAIT: ((0.05, 0.15), (0.00, 0.01), (0.10, 0.20)),
    CHAIN: ((0.15, 0.25), (0.00, 0.02), (0.08, 0.12)),
    TRAP: ((0.72, 0.80), (0.00, 0.005), (0.04, 0.08)),
    PRESSING: ((0.02, 0.08), (0.20, 0.26), (0.58, 0.66)),
    OTHER: ((0.03, 0.10), (0.00, 0.01), (0.10, 0.20)),
}
ON_SUCCESSOR: Ranges = ((0.54, 0.62), (0.03, 0.05), (0.05, 0.08))  # a successor, on the detail page before it
ON_DEAD: Ranges = ((0.00, 0.02), (0.00, 0.00), (0.40, 0.50))  # any item, on the detail page of bait and traps
ON_REST: Ranges = ((0.05, 0.15), (0.00, 0.01), (0.12, 0.22))  # any item, on the other detail pages
ON_ITSELF: Ranges = ((0.00, 0.01), (0.00, 0.00), (0.30, 0.40))  # an item, on its own detail page
TIRED, IMPATIENT = 0.1, 0.03  # per skip in a row: share of clicks and orders that is lost; added chance to leave


class Tabular(World):
    """A world with a table of chances.

    Args:
        table: (T, 1 + I, K + 1, I, 4) float64, the chances of feedback by type, shown item (the first row is the
            entrance page), skips in a row (K stands for K and more), and recommended item.
        markers: (T,) int64, distinct items that tell the types.
        vectors: (I, D) float32.
        history: N.

    Raises:
        ValueError: if rows of the table are no chances, or users may stay for ever.
    """

    def __init__(self, table: Tensor, markers: Tensor, vectors: Tensor, history: int) -> None:
        types, contexts, _, items, _ = table.shape
        if contexts != items + 1 or vectors.shape[0] != items or markers.shape != (types,):
            raise ValueError(
                f"a table for {types} types and {items} items needs rows for {items + 1} pages, got {contexts}, "
                f"{items} vectors, got {len(vectors)}, and {types} markers, got {len(markers)}"
            )
        if not ((table >= 0).all() and ((table.sum(-1) - 1).abs() < 1e-6).all()):
            raise ValueError("the chances of a table must be at least 0 and sum to 1")
        if not (table[..., LEAVE] > 0).all():
            raise ValueError("the chance to leave must be above 0 everywhere, or sessions need not end")
        self.table, self.markers, self.vectors, self.history = table, markers, vectors, history
        self._flat = table.float().flatten(0, 3)

    @property
    def types(self) -> int:
        """T."""
        return len(self.table)

    @property
    def patience(self) -> int:
        """K, the skips in a row from which more of them change nothing."""
        return self.table.shape[2] - 1

    def start(self, sessions: int, generator: torch.Generator) -> tuple[State, Tensor]:
        users = torch.randint(self.types, (sessions,), generator=generator)
        return self.entrance(users), users

    def entrance(self, users: Tensor) -> State:
        """The first states of users of some types (B,)."""
        history = torch.full((len(users), self.history), NOTHING)
        history[:, -1] = self.markers[users]
        page, shown = torch.full_like(users, ENTRANCE), torch.full_like(users, NOTHING)
        return State(history, page, shown, torch.zeros_like(users))

    def chances(self, users: Tensor, state: State, actions: Tensor) -> Tensor:
        _, contexts, skips, items, _ = self.table.shape
        page = users * contexts + state.shown + 1
        return self._flat[(page * skips + state.skips.clamp(max=skips - 1)) * items + actions]


def make(
    seed: int,
    *,
    items: Count = 20,
    types: Count = 4,
    patience: Whole = 3,
    history: Count = 20,
    vectors: Literal["orthogonal", "one_hot"] = "orthogonal",
    noise: Rate = 0.0,
) -> Tabular:
    """A world whose roles and chances are drawn from a seed.

    Args:
        items: I, at least 10.
        types: T, at most I.
        patience: K, see `Tabular.patience`.
        history: N.
        vectors: one axis for each item, or the same axes turned at random.
        noise: standard deviation of what is added to each component. The vectors are then made of length 1 again, so
            each item stays the one with the largest inner product with its own vector.

    Raises:
        ValueError: if there are too few items.
    """
    if items < LEAST_ITEMS:
        raise ValueError(f"items must be at least {LEAST_ITEMS}, so that all roles exist, got {items}")
    if types > items:
        raise ValueError(f"types must be at most the number of items, {items}, because each has a marker, got {types}")
    generator = torch.Generator().manual_seed(seed)
    table = torch.stack([_of_type(items, patience, generator) for _ in range(types)])
    markers = torch.randperm(items, generator=generator)[:types]
    return Tabular(table, markers, _vectors(items, vectors, noise, generator), history)


def _of_type(items: int, patience: int, generator: torch.Generator) -> Tensor:
    """(1 + I, K + 1, I, 4) the chances of a type of users."""
    roles = torch.full((items,), OTHER)
    order, first = torch.randperm(items, generator=generator), 0
    for role, share in SHARES.items():
        number = max(1, int(share * items + 0.5))
        roles[order[first : first + number]] = role
        first += number
    chain = (roles == CHAIN).nonzero()[:, 0].tolist()
    chain = [chain[place] for place in torch.randperm(len(chain), generator=generator)]
    rows = [[ON_ENTRANCE[int(role)] for role in roles]]
    for shown in range(items):
        row = [_on_detail(int(roles[shown]), int(role)) for role in roles]
        if shown in chain:
            place = chain.index(shown)
            for step in range(1, SUCCESSORS + 1):
                row[chain[(place + step) % len(chain)]] = ON_SUCCESSOR
        row[shown] = ON_ITSELF
        rows.append(row)
    low, high = torch.tensor(rows, dtype=torch.float64).unbind(-1)  # (1 + I, I, 3) each
    drawn = low + (high - low) * torch.rand(low.shape, generator=generator, dtype=torch.float64)
    return _with_skips(drawn, patience)


def _on_detail(shown: int, role: int) -> Ranges:
    if shown in (BAIT, TRAP):
        return ON_DEAD
    return ON_CHAIN[role] if shown == CHAIN else ON_REST


def _with_skips(drawn: Tensor, patience: int) -> Tensor:
    """Chances of click, order and leave (1 + I, I, 3) without skips -> those of all feedback (1 + I, K + 1, I, 4)."""
    skips = torch.arange(patience + 1, dtype=torch.float64)[None, :, None]
    click, order, leave = (part[:, None] for part in drawn.unbind(-1))
    eager = (1 - TIRED * skips).clamp(min=0)
    table = torch.zeros(drawn.shape[0], patience + 1, drawn.shape[1], 4, dtype=torch.float64)
    table[..., CLICK], table[..., ORDER] = click * eager, order * eager
    taken = table[..., CLICK] + table[..., ORDER]
    table[..., LEAVE] = torch.minimum(leave + IMPATIENT * skips, 1 - taken)
    table[..., SKIP] = (1 - taken - table[..., LEAVE]).clamp(min=0)
    return table


def _vectors(items: int, kind: str, noise: float, generator: torch.Generator) -> Tensor:
    """(I, I) float32 of length 1."""
    axes = torch.eye(items)
    if kind == "orthogonal":
        axes = torch.linalg.qr(torch.randn(items, items, generator=generator)).Q
    noisy = axes + noise * torch.randn(items, items, generator=generator)
    return noisy / noisy.norm(dim=1, keepdim=True)
