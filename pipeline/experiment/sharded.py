"""The model of an allocation with tables that are divided among processes."""

from __future__ import annotations

import logging

import torch

from pipeline.allocation.allocation import Allocation
from pipeline.embeddings.mixed import is_plain
from pipeline.embeddings.sharded import ShardedTables
from pipeline.experiment.experiment import Experiment
from pipeline.experiment.method import build
from pipeline.models.model import Model
from pipeline.training import ranks

log = logging.getLogger("pipeline.training")
SETTING = "params.yaml: retrain.tables is torchrec"
REMEDY = "set retrain.tables to local"


def sharded(experiment: Experiment, allocation: Allocation) -> Model:
    """A fresh model whose tables are divided among the processes of this training; all of them must call this.

    Raises:
        ValueError: if there is one process, or the tables cannot be divided.
    """
    if ranks.number() == 1:
        raise ValueError(f"{SETTING}, which needs several processes; set retrain.devices to 2 or more, or {REMEDY}")
    if torch.cuda.is_available():
        raise ValueError(f"{SETTING}, whose kernels here are for processors; hide the GPUs, or {REMEDY}")
    if experiment.data.interactions is not None:
        raise ValueError(f"{SETTING}, and several processes cannot share task {experiment.params.task.name}; {REMEDY}")
    kept = experiment.schema.subset(allocation.kept())
    with torch.device("meta"):
        plain = build(kept, experiment.dim, allocation.of_kept())
    if not is_plain(plain):
        raise ValueError(
            f"{SETTING}, which holds plain mixed dimensions, and method {allocation.method} builds "
            f"{type(plain).__name__}; {REMEDY}"
        )
    share = ranks.share()
    assert share is not None
    tables = ShardedTables(kept, [plain.dims[name] for name in kept.names], plain.dim, share)
    model = Model(experiment.schema, tables, experiment.backbone, experiment.backbone_options, kept)
    numbers = [0] * share.number
    for piece in tables.shards.pieces:
        numbers[piece.rank] += tables.cardinalities[piece.table] * (piece.stop - piece.start)
    if ranks.first():
        log.info("the tables take %s bytes, by process", " + ".join(f"{4 * number:,}" for number in numbers))
    return model
