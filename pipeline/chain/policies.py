"""Policies that do not look ahead: the best next reward, the most popular item, and any item."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.chain.behaviour import Behaviour
from pipeline.chain.logs import Log
from pipeline.chain.sessions import Policy
from pipeline.chain.world import CLICK, ORDER


def greedy(model: Behaviour, rewards: Tensor) -> Policy:
    """The item with the largest expected reward of the next step, for rewards (4,); the first of equals."""
    return lambda state: model.immediate(state, rewards).argmax(1)


def most_popular(log: Log, items: int) -> Policy:
    """Always the item of the log that was clicked or ordered most often; the first of equals.

    Args:
        log: transitions.
        items: I.
    """
    taken = (log.feedback == CLICK) | (log.feedback == ORDER)
    best = int(torch.bincount(log.actions[taken], minlength=items).argmax())
    return lambda state: torch.full_like(state.page, best)


def anything(items: int, seed: int) -> Policy:
    """Any of I items, each as likely as the others. Another call goes on with the same generator."""
    generator = torch.Generator().manual_seed(seed)
    return lambda state: torch.randint(items, (len(state),), generator=generator)
