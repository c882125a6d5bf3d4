"""Matrix products of a backbone in bfloat16 while it trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Mixed:
    """A model whose backbone may compute its matrix products in bfloat16 while it trains.

    The embedding, the weights and what the backbone returns keep their type, and so do all gradients of weights.

    Attributes:
        mixed: whether it does.
    """

    mixed = False
    training: bool

    def products(self, part: Callable[..., Tensor], *inputs: Any, like: Tensor) -> Tensor:
        """What a part of the backbone makes of its inputs, with the type of ``like`` and on its device."""
        if not (self.mixed and self.training):
            return part(*inputs)
        # Without kept copies of weights: they would be old ones in a replayed step, and where a search moves weights.
        with torch.autocast(like.device.type, torch.bfloat16, cache_enabled=False):
            return part(*inputs).to(like.dtype)
