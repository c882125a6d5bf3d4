"""The tables of a model, and their effect on its loss."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.compress.tables import Kind, Lookups, lookups_of
from pipeline.workflow.progress import progress

Losses = Callable[[nn.Module, Any], Tensor]  # (model, batch) -> the loss of each row, (B,)


def found_in(model: nn.Module, names: Sequence[str] | None) -> dict[str, Kind]:
    """The tables to code, by name.

    Raises:
        ValueError: if there are none, or one cannot be coded.
    """
    every = {n: m for n, m in model.named_modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    unknown = sorted(set(names or ()) - set(every))
    if unknown or not every:
        raise ValueError(f"the model has the embedding tables {sorted(every)}, got {unknown or 'none'}")
    found = {name: module for name, module in every.items() if names is None or name in names}
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    for name, module in found.items():
        shared = [other for other in owners[id(module.weight)] if other != f"{name}.weight"]
        if shared:
            raise ValueError(f"{name}.weight is also {', '.join(shared)}; a table that is shared cannot be coded")
        if module.max_norm is not None:
            raise ValueError(f"{name} has max_norm={module.max_norm}, which changes rows at a lookup; remove it")
        if getattr(module, "mode", None) == "max":
            raise ValueError(f"{name} is an EmbeddingBag of mode 'max'; only 'sum' and 'mean' can be coded")
    return found


@dataclass(frozen=True)
class Segment:
    """Rows of a table that are coded together: a field."""

    name: str
    first: int
    rows: int


def segments_of(found: Mapping[str, Kind], fields: Mapping[str, Sequence[int]]) -> list[Segment]:
    unknown = sorted(set(fields) - set(found))
    if unknown:
        raise ValueError(f"fields are given for {unknown}, which are not among the tables {sorted(found)}")
    segments = []
    for name, module in found.items():
        firsts = [int(first) for first in fields.get(name, (0,))]
        bounds = [*firsts, module.num_embeddings]
        if firsts[:1] != [0] or any(b <= a for a, b in itertools.pairwise(bounds)):
            raise ValueError(
                f"first rows of the fields of {name} must ascend from 0 to below {module.num_embeddings}, got {firsts}"
            )
        segments += [Segment(name, a, b - a) for a, b in itertools.pairwise(bounds)]
    return segments


@dataclass(frozen=True)
class Effect:
    """What the batches say of a segment: weights (V,), and the metric (D, D); see `pipeline.coding.transform`."""

    weights: Tensor
    metric: Tensor


def effects_of(
    model: nn.Module, found: Mapping[str, Kind], segments: Sequence[Segment], batches: Iterable[Any], losses: Losses
) -> list[Effect]:
    """The effect of every segment on the loss."""
    calls: list[tuple[str, Lookups, Tensor]] = []

    def watch(name: str, module: Kind, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> Tensor:
        leaf = output.detach().requires_grad_()
        calls.append((name, lookups_of(module, args, kwargs), leaf))
        return leaf

    weights = {name: torch.zeros(module.num_embeddings, dtype=torch.float64) for name, module in found.items()}
    metrics = [torch.zeros(found[s.name].embedding_dim, found[s.name].embedding_dim).double() for s in segments]
    masses, rows = [0.0] * len(segments), 0
    with ExitStack() as stack:
        for name, module in found.items():
            stack.callback(module.register_forward_hook(partial(watch, name), with_kwargs=True).remove)
        for batch in progress(batches, desc="compress", unit=" batches"):
            calls.clear()
            with torch.enable_grad():
                of_rows = losses(model, batch)
                if of_rows.dim() != 1:
                    raise ValueError(
                        f"losses must return the loss of each row, (B,), got the shape {tuple(of_rows.shape)}"
                    )
                leaves = [leaf for _, _, leaf in calls]
                gradients = torch.autograd.grad(of_rows.sum(), leaves, materialize_grads=True)
            rows += len(of_rows)
            for (name, lookups, leaf), gradient in zip(calls, gradients, strict=True):
                ids, squares = lookups.ids.cpu(), lookups.shares.double().square().cpu()
                weights[name].index_add_(0, ids, squares)
                flat = gradient.float().reshape(-1, leaf.shape[-1])[lookups.owners].cpu()
                flat = flat * lookups.shares.cpu()[:, None]
                for i, segment in enumerate(segments):
                    if segment.name == name:
                        here = (ids >= segment.first) & (ids < segment.first + segment.rows)
                        metrics[i] += (flat[here].T @ flat[here]).double()
                        masses[i] += float(squares[here].sum())
    if not rows:
        raise ValueError("there are no batches; give some training data")
    unseen = 0.5  # lookups that a row is credited with besides those of the batches
    return [
        Effect(((weights[s.name][s.first : s.first + s.rows] + unseen) / rows).float(), metric / max(mass, 1.0))
        for s, metric, mass in zip(segments, metrics, masses, strict=True)
    ]
