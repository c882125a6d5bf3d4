"""Matrix products of a backbone in bfloat16 while it trains."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

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

    def products(self, vectors: Tensor) -> AbstractContextManager[object]:
        """The block in which the backbone is computed, on the device of its vectors."""
        if not (self.mixed and self.training):
            return nullcontext()
        # Without kept copies of weights: they would be old ones in a replayed step, and where a search moves weights.
        return torch.autocast(vectors.device.type, torch.bfloat16, cache_enabled=False)
