"""The table that stands in for an embedding of PyTorch: it holds nothing but the coded form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.coding.stored import StoredTable

Kind = nn.Embedding | nn.EmbeddingBag


def restore(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Load the ``state_dict`` of a coded model; the tables that it codes are replaced by coded ones.

    Args:
        model: of the same class and settings as the model before coding; changed in place. Its tables may be on the
            ``meta`` device.
        state: of the coded model.

    Raises:
        ValueError: if a coded table of the state does not fit the model.
    """
    names = sorted(name.removesuffix(".firsts") for name in state if name.endswith(".firsts"))
    for name in names:
        module = model.get_submodule(name)
        if not isinstance(module, nn.Embedding | nn.EmbeddingBag):
            raise ValueError(f"{name} of the model must be an embedding table, got {type(module).__name__}")
        own = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
        firsts = own["firsts"]
        bounds = [*firsts.tolist(), module.num_embeddings]
        parts = []
        for i in range(len(firsts)):
            part = {key: own[f"tables.{i}.{key}"] for key in StoredTable.NAMES if f"tables.{i}.{key}" in own}
            parts.append(StoredTable(bounds[i + 1] - bounds[i], module.embedding_dim, part))
        replace_module(model, name, CodedEmbedding(module, firsts, parts))
    model.load_state_dict(state)
    return model.eval()


class CodedEmbedding(nn.Module):
    """Stands in for `torch.nn.Embedding` or `torch.nn.EmbeddingBag`; vectors are decoded as they are looked up.

    Args:
        of: the table that is replaced.
        firsts: first row of each part.
        tables: of the parts.
    """

    def __init__(self, of: Kind, firsts: Tensor, tables: Sequence[StoredTable]) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim, self.padding_idx = of.num_embeddings, of.embedding_dim, of.padding_idx
        self.mode = of.mode if isinstance(of, nn.EmbeddingBag) else None
        self.include_last_offset = isinstance(of, nn.EmbeddingBag) and of.include_last_offset
        self.dtype = of.weight.dtype
        self.register_buffer("firsts", firsts)
        self.tables = nn.ModuleList(tables)

    firsts: Tensor

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        found = lookups_of(self, args, kwargs)
        part = torch.bucketize(found.ids.contiguous(), self.firsts, right=True) - 1
        vectors = torch.zeros(len(found.ids), self.embedding_dim, device=found.ids.device)
        for i, table in enumerate(self.tables):
            here = part == i
            vectors[here] = table(found.ids[here] - self.firsts[i])
        outputs = torch.zeros(found.outputs, self.embedding_dim, device=found.ids.device)
        outputs.index_add_(0, found.owners, vectors * found.shares[:, None])
        return outputs.view(*found.shape, self.embedding_dim).to(self.dtype)

    @property
    def bytes(self) -> int:
        """Bytes of the codes and of all that decodes them."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self.buffers())


@dataclass(frozen=True)
class Lookups:
    """The lookups of one call of a table.

    Args:
        ids: (n,) rows that are looked up, without padding.
        owners: (n,) number of the output that each is added to.
        shares: (n,) factors.
        outputs: number of outputs.
        shape: of the outputs, without the last dimension.
    """

    ids: Tensor
    owners: Tensor
    shares: Tensor
    outputs: int
    shape: tuple[int, ...]


def lookups_of(module: Kind | CodedEmbedding, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Lookups:
    given = dict(zip(("input", "offsets", "per_sample_weights"), args, strict=False)) | dict(kwargs)
    ids, offsets, factors = given["input"], given.get("offsets"), given.get("per_sample_weights")
    flat = ids.flatten().long()
    mode = getattr(module, "mode", None)
    if mode is None:
        owners, shape = torch.arange(len(flat), device=flat.device), tuple(ids.shape)
    elif offsets is None:
        owners = torch.arange(len(ids), device=flat.device).repeat_interleave(ids.shape[1])
        shape = (len(ids),)
    else:
        starts = offsets[:-1] if module.include_last_offset else offsets
        owners = torch.bucketize(torch.arange(len(flat), device=flat.device), starts, right=True) - 1
        shape = (len(starts),)
    shares = torch.ones(len(flat), device=flat.device) if factors is None else factors.flatten().float()
    if module.padding_idx is not None:
        shown = flat != module.padding_idx
        flat, owners, shares = flat[shown], owners[shown], shares[shown]
    outputs = int(np.prod(shape))
    if mode == "mean":
        sizes = torch.bincount(owners, minlength=outputs)
        shares = shares / sizes[owners]
    return Lookups(flat, owners, shares, outputs, shape)


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)
