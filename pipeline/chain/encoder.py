"""What agents and the behaviour model make of a state: a memory of the history, and a score of a state and an item.

DeepChain's encoder is a GRU with item-level attention; the item vectors come from outside and stay as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from pipeline.chain.world import NOTHING, State

GRID = 2**22  # hidden numbers that `Pairs.grid` holds at a time


class Memory(nn.Module):
    """The preference in a history: h_i = GRU(e_i, h_{i-1}), alpha = softmax(w . tanh(W h_i + b)), p = sum alpha_i h_i.

    An empty history is the zero vector.

    Args:
        dim: D, of the item vectors.
        width: H, of the result.
    """

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.gru = nn.GRU(dim, width, batch_first=True)
        self.attend = nn.Linear(width, width)
        self.weigh = nn.Linear(width, 1, bias=False)

    def forward(self, vectors: Tensor, filled: Tensor) -> Tensor:
        """(B, N, D) vectors, the oldest first and ``filled`` (B,) of them real -> (B, H)."""
        lengths = filled.clamp(min=1).cpu()
        packed = pack_padded_sequence(vectors, lengths, batch_first=True, enforce_sorted=False)
        outputs, _ = self.gru(packed)
        scores = self.weigh(self.attend(outputs.data).tanh())
        both = PackedSequence(torch.cat([outputs.data, scores], 1), *outputs[1:])
        padded, _ = pad_packed_sequence(both, batch_first=True)
        real = torch.arange(padded.shape[1], device=filled.device) < filled[:, None]
        weights = padded[..., -1].masked_fill(~real, torch.finfo(padded.dtype).min).softmax(1) * real
        return (weights[:, None] @ padded[..., :-1]).squeeze(1)


class Encoder(nn.Module):
    """States as vectors: what memories make of the history, the number of skips and the vector of the shown item.

    Args:
        vectors: (I, D) of the items. They are no parameters, and no part of the saved state.
        width: H, of a memory.
        skips: so many skips and more are the same.
        memories: number M of memories, each with weights of its own.
    """

    table: Tensor

    def __init__(self, vectors: Tensor, width: int, skips: int, memories: int = 1) -> None:
        super().__init__()
        dim = vectors.shape[1]
        nothing = vectors.new_zeros(1, dim)
        self.register_buffer("table", torch.cat([vectors, nothing]), persistent=False)  # NOTHING is the last row
        self.memories = nn.ModuleList(Memory(dim, width) for _ in range(memories))
        self.width, self.skips = width, skips
        self.context_width = skips + 1 + dim
        self.register_buffer("_counts", torch.eye(skips + 1, dtype=vectors.dtype), persistent=False)

    @property
    def vectors(self) -> Tensor:
        """(I, D)."""
        return self.table[:NOTHING]

    def remember(self, state: State) -> Tensor:
        """(B, M, H): the history in every memory."""
        history = state.history
        if not len(state):
            return self.table.new_zeros(0, len(self.memories), self.width)
        size = history.shape[1]
        filled = (history != NOTHING).sum(1)
        places = (torch.arange(size, device=history.device) + (size - filled)[:, None]) % size
        vectors = self.table[history.gather(1, places)]
        return torch.stack([memory(vectors, filled) for memory in self.memories], 1)

    def context(self, state: State) -> Tensor:
        """(B, context_width): the number of skips, one-hot, and the vector of the shown item, zero where none is."""
        counts: Tensor = self._counts  # type: ignore[assignment]
        return torch.cat([counts[state.skips.clamp(max=self.skips)], self.table[state.shown]], 1)


class Pairs(nn.Module):
    """A network of a state and an item: V relu(f(state) + W item) + c, where f has one hidden layer.

    The item enters late, so that all pairs of states and items are cheap.

    Args:
        features: F, numbers of a state.
        dim: D, of the item vectors.
        hidden: width of the layers.
        outputs: K.
    """

    def __init__(self, features: int, dim: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.state = nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, hidden))
        self.item = nn.Linear(dim, hidden, bias=False)
        self.out = nn.Linear(hidden, outputs)

    def forward(self, features: Tensor, vectors: Tensor) -> Tensor:
        """(B, F) and (B, D) -> (B, K); (B, F) and (B, M, D), M items for each state -> (B, M, K)."""
        seen = self.state(features)
        return self.out((self.item(vectors) + (seen if vectors.dim() == 2 else seen[:, None])).relu())

    def grid(self, features: Tensor, vectors: Tensor) -> Tensor:
        """(B, F) and (I, D): all pairs -> (B, I, K)."""
        seen, items = self.state(features)[:, None], self.item(vectors)
        some = max(1, GRID // max(1, seen.numel()))
        return torch.cat([self.out((seen + part).relu()) for part in items.split(some)], 1)
