"""Policies that do not look ahead: the best next reward, the most popular item, and any item."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.chain.behaviour import Behaviour
from pipeline.chain.logs import Log
from pipeline.chain.sessions import Policy
from pipeline.chain.world import CLICK, ORDER, State


def greedy(model: Behaviour, rewards: Tensor, repeats: bool = True) -> Policy:
    """The item with the largest expected reward of the next step, for rewards (4,); the first of equals."""
    return lambda state: best(state, model.immediate(state, rewards), repeats)


def most_popular(log: Log, items: int, repeats: bool = True) -> Policy:
    """The item of the log that was clicked or ordered most often; the first of equals.

    Args:
        log: transitions.
        items: I.
        repeats: see `World.repeats`.
    """
    taken = (log.feedback == CLICK) | (log.feedback == ORDER)
    counts = torch.bincount(log.actions[taken], minlength=items).float()
    return lambda state: best(state, counts.expand(len(state), -1), repeats)


def anything(items: int, seed: int, repeats: bool = True) -> Policy:
    """Any of I items, each as likely as the others. Another call goes on with the same generator."""
    generator = torch.Generator().manual_seed(seed)
    return lambda state: best(state, torch.rand(len(state), items, generator=generator), repeats)


def best(state: State, scores: Tensor, repeats: bool) -> Tensor:
    """The items (B,) with the largest scores (B, I); those of the history only if ``repeats``."""
    return (scores if repeats else state.without_history(scores)).argmax(1)
