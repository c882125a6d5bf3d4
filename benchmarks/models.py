"""The project's own models and training modules, as in the stages, for rows in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from benchmarks.timing import Step
from pipeline.allocation.allocation import Allocation
from pipeline.allocation.evidence import Problem
from pipeline.backbones.deepfm import Backbone as DeepFM
from pipeline.data.batches import Batch, Batches
from pipeline.data.schema import Schema
from pipeline.data.split import Split
from pipeline.embeddings.contract import FieldEmbedding
from pipeline.embeddings.cost import full_tables, prices
from pipeline.experiment.method import Method, build
from pipeline.models.model import Model, assemble
from pipeline.tasks import ctr
from pipeline.training.search import LitSearch
from pipeline.training.task import Task
from pipeline.training.weights import LitWeights
from pipeline.workflow.params import Architecture

CANDIDATES = (2, 8, 16, 24, 32)  # the paper's
DIM, BATCH = 32, 2000
NEVER = 1e9  # seconds between checkpoints, so that none is written
PLANNED = 10_000  # steps of a training whose first steps are timed
Kind = Literal["plain", "search"]
KINDS: tuple[Kind, ...] = ("plain", "search")
CTR = Task.of("ctr", ctr, {})


def split(batches: Sequence[Batch]) -> Split:
    """The rows of the batches, in the form that the training loop reads."""
    return Split(
        tuple(batch.ids.numpy() for batch in batches),
        tuple(batch.labels.numpy().astype(np.uint8) for batch in batches),
    )


def allocated(schema: Schema, allocation: Allocation, dim: int = DIM) -> Model:
    """DeepFM on the tables of an allocation."""
    return assemble(schema, dim, allocation, build, DeepFM)


def full(schema: Schema, dim: int = DIM) -> Allocation:
    """Full tables for all fields."""
    return Allocation("full", dict.fromkeys(schema.names, dim))


def plain(schema: Schema, rows: Split, dim: int = DIM) -> LitWeights:
    """Plain training: DeepFM on full tables."""
    return LitWeights(allocated(schema, full(schema, dim), dim), CTR, rows, PLANNED)


def searched(
    schema: Schema,
    rows: Split,
    dim: int = DIM,
    candidates: Sequence[int] = CANDIDATES,
    batch_size: int = BATCH,
    architecture: Architecture | None = None,
    **options: Any,
) -> LitSearch:
    """A search: DeepFM on AutoDim's supernet; ``options`` are those of the method."""
    method = Method.named("autodim", options)
    offered = (tuple(candidates),) * len(schema)
    problem = Problem(
        method=method.name,
        schema=schema,
        dim=dim,
        candidates=offered,
        prices=prices(method.plain, schema, offered, dim),
        full_bytes=full_tables(schema, dim).bytes,
    )
    supernet = method.find(problem)
    if not isinstance(supernet, FieldEmbedding):
        raise TypeError(f"method {method.name} trains no supernet, it found {type(supernet).__name__}")
    return LitSearch(
        Model(schema, supernet, DeepFM),
        CTR,
        rows,
        PLANNED,
        Batches(rows, batch_size, seed=1),
        architecture or Architecture(),
        schema.names,
        offered,
        problem.prices,
    )


def training(kind: Kind, schema: Schema, rows: Split, **options: Any) -> LitWeights:
    """Plain training, or a search with these options of `searched`."""
    return plain(schema, rows) if kind == "plain" else searched(schema, rows, **options)


def weight_steps(module: LitWeights, batches: Sequence[Batch]) -> Step:
    """A step of the weights on one batch after another."""
    optimizers = module.configure_optimizers()
    return lambda i: module.weight_step(batches[i % len(batches)], optimizers)


def arch_steps(module: LitSearch, batches: Sequence[Batch]) -> Step:
    """A step of the architecture on one batch of ``arch`` after another; the second order trains on ``batches``."""
    module.configure_optimizers()
    return lambda i: module.arch_step(batches[i % len(batches)])
