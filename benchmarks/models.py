"""The product's own models and training modules, made for a schema as the stages make them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from pipeline.allocation.evidence import Evidence
from pipeline.data.batches import Batches
from pipeline.data.schema import Schema
from pipeline.data.split import Split
from pipeline.embeddings.cost import prices
from pipeline.models.model import CTRModel, assemble
from pipeline.training.search import LitSearch, Steps
from pipeline.training.weights import LitCTR
from pipeline.workflow.plug import plug

CANDIDATES = (2, 8, 16, 24, 32)  # the paper's
DIM, BATCH = 32, 2000


def split(batches: Sequence[tuple[Tensor, Tensor]]) -> Split:
    return Split(
        tuple(ids.numpy() for ids, _ in batches), tuple(labels.numpy().astype(np.uint8) for _, labels in batches)
    )


def plain(schema: Schema, rows: Split, dim: int = DIM) -> LitCTR:
    """DeepFM on the full tables."""
    full = plug("methods", "full")
    evidence = Evidence(schema, dim, ((dim,),) * len(schema), np.zeros((len(schema), 1), dtype=np.int64), 0)
    model = assemble(schema, dim, full.derive(evidence), full.build, plug("backbones", "deepfm").Backbone)
    return LitCTR(model, rows, planned=10_000)


def searched(
    schema: Schema,
    rows: Split,
    dim: int = DIM,
    candidates: Sequence[int] = CANDIDATES,
    batch_size: int = BATCH,
    order: Any = 1,
    **options: Any,
) -> LitSearch:
    """DeepFM on AutoDim's supernet; ``options`` are of its ``search``."""
    autodim = plug("methods", "autodim")
    each = [list(candidates)] * len(schema)
    priced = prices(autodim.build, schema, each, dim)
    model = CTRModel(schema, autodim.search(schema, dim, each, priced, **options), plug("backbones", "deepfm").Backbone)
    arch = Batches(rows, batch_size, seed=1)
    return LitSearch(model, rows, 10_000, arch, Steps(order=order), schema.names, each, priced)
