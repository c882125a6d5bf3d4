"""The agents of DeepChain and its rivals: who acts on which page, and whose critic says what an item is worth.

An actor turns a state into a proto-item; the item is the nearest candidate by inner product, or the one of the nearest
that the critic likes most (Wolpertinger: Dulac-Arnold et al. 2015, arXiv 1512.07679, algorithm 1).

NOTE[DIFF]: the encoder learns from the critic's loss alone, and actors read it as it is. So actors and critic cannot
pull it in two directions, and one pass through the history serves both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from pipeline.chain.encoder import Encoder, Pairs
from pipeline.chain.policies import best
from pipeline.chain.targets import BOTH
from pipeline.chain.world import DETAIL, ENTRANCE, State
from pipeline.workflow.chain import Networks
from pipeline.workflow.validation import suggestion


class Variant(NamedTuple):
    """What sets agents apart.

    Args:
        brains: the pages of each brain. A brain has one critic, and another brain's page is the end for it.
        heads: whether a brain of two pages has an actor for each, and its critic knows the page.
        expected: whether targets are expectations over the feedback, not the observed branch.
        messages: whether each actor has a memory of its own and gets a message from the other's.
    """

    brains: tuple[tuple[int, ...], ...] = (BOTH,)
    heads: bool = True
    expected: bool = True
    messages: bool = False


VARIANTS = {
    "deepchain": Variant(),
    "deepchain_free": Variant(expected=False),
    "independent": Variant(brains=((ENTRANCE,), (DETAIL,))),
    "single": Variant(heads=False),  # it sees the shown item, as a part of the state
    "messages": Variant(expected=False, messages=True),  # like MA-RDPG: Feng et al. 2018, WWW, arXiv 1809.06260
}


class Brain(nn.Module):
    """The critic of some pages, the memory that it reads, and the actors of these pages.

    Args:
        vectors: (I, D) of the items, frozen.
        pages: on which it acts.
        variant: of the agents.
        options: of the agents.
        repeats: see `pipeline.chain.world.World`.
    """

    def __init__(
        self, vectors: Tensor, pages: tuple[int, ...], variant: Variant, options: Networks, repeats: bool = True
    ) -> None:
        super().__init__()
        items, dim = vectors.shape
        heads = len(pages) if variant.heads else 1
        self.pages, self.options, self.messages, self.repeats = pages, options, variant.messages, repeats
        self.knows_page = heads > 1
        self.exact = options.choose == "best_of" and items <= options.exact_items
        self.encoder = Encoder(vectors, options.memory, options.skips, heads if variant.messages else 1)
        context = self.encoder.context_width
        memories = options.memory * len(self.encoder.memories)
        self.critic = Pairs(memories + context + len(BOTH) * self.knows_page, dim, options.hidden, 1)
        message = options.message if variant.messages else 0
        self.actors = nn.ModuleList(nn.Linear(options.memory + message + context, dim) for _ in range(heads))
        self.senders = nn.ModuleList(nn.Linear(options.memory, message) for _ in range(heads if message else 0))

    def critic_parameters(self) -> list[nn.Parameter]:
        """Of the critic and the encoder."""
        return [*self.critic.parameters(), *self.encoder.parameters()]

    def actor_parameters(self) -> list[nn.Parameter]:
        """Of the actors and their messages."""
        return [*self.actors.parameters(), *self.senders.parameters()]

    def read(self, state: State) -> tuple[Tensor, Tensor]:
        """The memories (B, M, H) of states, and the features (B, F) that the critic reads."""
        memories = self.encoder.remember(state)
        parts = [memories.flatten(1), self.encoder.context(state)]
        if self.knows_page:
            parts.append(one_hot(state.page, len(BOTH)).to(memories.dtype))
        return memories, torch.cat(parts, 1)

    def score(self, features: Tensor, vectors: Tensor) -> Tensor:
        """Q of features (B, F) and item vectors: (B, D) -> (B,), (B, M, D) -> (B, M)."""
        return self.critic(features, vectors).squeeze(-1)

    def proto(self, state: State, memories: Tensor) -> Tensor:
        """The proto-items tanh(W_k p + b_k) (B, D) of the actors k of the states' pages."""
        context = self.encoder.context(state)
        protos: list[Tensor] = []
        for own, actor in enumerate(self.actors):
            if not self.messages:
                parts = [memories[:, 0], context]
            else:
                other = 1 - own
                parts = [memories[:, own], self.senders[other](memories[:, other]).tanh(), context]
            protos.append(actor(torch.cat(parts, 1)).tanh())
        if len(protos) == 1:
            return protos[0]
        return torch.where((state.page == DETAIL)[:, None], protos[DETAIL], protos[ENTRANCE])

    @torch.no_grad()
    def choose(self, state: State, noise: Callable[[Tensor], Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """The items (B,) that the actors choose, and their Q (B,).

        Args:
            state: of B sessions on pages of this brain.
            noise: makes of the proto-items those that are looked up.
        """
        memories, features = self.read(state)
        items = self.encoder.vectors
        if self.exact:
            found = self._open(state, self.critic.grid(features, items).squeeze(2)).max(1)
            return found.indices, found.values
        proto = self.proto(state, memories)
        nearness = self._open(state, (proto if noise is None else noise(proto)) @ items.T)
        number = min(self.options.candidates, len(items)) if self.options.choose == "best_of" else 1
        near = nearness.topk(number, dim=1)
        scores = self.score(features, items[near.indices])
        found = scores.masked_fill(near.values == -torch.inf, -torch.inf).max(1)
        return near.indices.gather(1, found.indices[:, None]).squeeze(1), found.values

    def _open(self, state: State, scores: Tensor) -> Tensor:
        return scores if self.repeats else state.without_history(scores)

    def value(self, state: State) -> Tensor:
        """Q(s, pi(s)) (B,)."""
        return self.choose(state)[1]


class Agents(nn.Module):
    """Agents of both pages. Called with the states of B sessions, they choose their items (B,), without exploring.

    Args:
        vectors: (I, D) float32 of the items; agents do not train them.
        variant: one of `VARIANTS`.
        options: how they are built and choose.
        repeats: see `pipeline.chain.world.World`.

    Raises:
        ValueError: if there is no such variant.
    """

    def __init__(
        self, vectors: Tensor, variant: str = "deepchain", options: Networks | None = None, repeats: bool = True
    ) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(
                f"there are no agents {variant!r}{suggestion(variant, VARIANTS)}; valid are {', '.join(VARIANTS)}"
            )
        self.variant, self.options, self.repeats = VARIANTS[variant], options or Networks(), repeats
        self.brains = nn.ModuleList(Brain(vectors, p, self.variant, self.options, repeats) for p in self.variant.brains)
        self.items = len(vectors)

    def forward(self, state: State) -> Tensor:
        return self._chosen(state, None)

    def explore(self, state: State, generator: torch.Generator, noise: float, random: float) -> Tensor:
        """Items (B,) for sessions to learn from.

        Args:
            state: of B sessions.
            generator: of the exploration.
            noise: standard deviation of what is added to every number of a proto-item.
            random: share of items that are drawn at random instead.
        """

        def noisy(proto: Tensor) -> Tensor:
            return proto + noise * torch.randn(proto.shape, generator=generator)

        chosen = self._chosen(state, noisy)
        drawn = best(state, torch.rand(len(state), self.items, generator=generator), self.repeats)
        return torch.where(torch.rand(chosen.shape, generator=generator) < random, drawn, chosen)

    def _chosen(self, state: State, noise: Callable[[Tensor], Tensor] | None) -> Tensor:
        if len(self.brains) == 1:
            return self.brains[0].choose(state, noise)[0]  # type: ignore[operator]
        chosen = torch.empty_like(state.page)
        for brain in self.brains:
            here = torch.isin(state.page, torch.tensor(brain.pages)).nonzero().squeeze(1)  # type: ignore[arg-type]
            chosen[here] = brain.choose(state[here], noise)[0]  # type: ignore[operator]
        return chosen
