"""`pipeline.compress` on models of other libraries: AUC before and after, with nothing trained in between.

Reads encoded data (`dvc repro encode`), trains the DeepFM of each library with the library's own optimiser, keeps the
epoch that is best on `val`, codes all its tables at some sizes, and prints the AUC on `test`. Bags are left out: these
models take one value per field.

    python -m benchmarks.compressed --encoded artifacts/encoded --dim 16 --epochs 6
"""

from __future__ import annotations

import argparse
import copy
import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy

from benchmarks import peers
from benchmarks.alone import ROOT
from pipeline.compress import compress
from pipeline.data.batches import Batch, Batches
from pipeline.data.encoded import Encoded
from pipeline.data.schema import Schema
from pipeline.data.split import Split
from pipeline.metrics.auc import auc
from pipeline.reporting.text import table

SHARES = (0.1, 0.05, 0.025)
BATCH, SEED = 2000, 0
CALIBRATION_ROWS = 200_000


class Reader:
    """Batches of the single-valued fields, as a library takes them.

    Args:
        data: encoded.
        peer: the library's model.
    """

    def __init__(self, data: Encoded, kept: Schema) -> None:
        self.data, self.slots = data, torch.from_numpy(data.schema.slots_of(kept.names))

    def batches(self, split: Split, seed: int | None = None) -> Iterator[Batch]:
        for batch in Batches(split, BATCH, seed):
            yield Batch(batch.ids[:, self.slots], batch.labels)


def probabilities(model: nn.Module, batch: Any) -> Tensor:
    """(B,) of the model of any of the libraries."""
    inputs = batch[0] if isinstance(batch, tuple) else batch
    predicted = model(inputs)
    return (predicted["y_pred"] if isinstance(predicted, dict) else predicted).reshape(-1)


@torch.no_grad()
def quality(peer: peers.Peer, model: nn.Module, reader: Reader, split: Split) -> float:
    """AUC on a split."""
    model.eval()
    parts = [probabilities(model, peer.prepare(batch)).numpy() for batch in reader.batches(split)]
    return auc(split.all_labels(), np.concatenate(parts))


def train(peer: peers.Peer, reader: Reader, training: Split, val: Split, epochs: int) -> float:
    """Train, and load the weights of the best epoch; its AUC on ``val``."""
    model, best, kept = peer.model, 0.0, {}
    batches = Batches(training, BATCH, SEED)
    for epoch in range(epochs):
        model.train()
        for batch in batches:
            peer.step(peer.prepare(Batch(batch.ids[:, reader.slots], batch.labels)))
        reached = quality(peer, model, reader, val)
        print(f"{peer.name}, epoch {epoch}: val AUC {reached:.4f}", file=sys.stderr, flush=True)
        if reached > best:
            best, kept = reached, copy.deepcopy(model.state_dict())
    model.load_state_dict(kept)
    return best


def measured(kind: type[peers.Peer], data: Encoded, dim: int, epochs: int) -> list[list[str]]:
    """A row for the trained model, and one for each size."""
    kept = data.schema.subset([field.name for field in data.schema.fields if field.width == 1])
    reader = Reader(data, kept)
    training, val, test = data.split("train", "arch"), data.split("val"), data.split("test")
    torch.manual_seed(SEED)
    peer = kind(kept, dim, "as it comes")
    train(peer, reader, training, val, epochs)
    some = training.thinned(1 / max(1, -(-len(training) // CALIBRATION_ROWS)))

    def losses(model: nn.Module, batch: tuple[Any, Tensor]) -> Tensor:
        inputs, labels = batch
        return binary_cross_entropy(probabilities(model, inputs).clamp(1e-7, 1 - 1e-7), labels, reduction="none")

    before = quality(peer, peer.model, reader, test)
    firsts = kept.first_rows.tolist()
    joint = [
        name
        for name, module in peer.model.named_modules()
        if isinstance(module, nn.Embedding) and module.num_embeddings == kept.num_rows
    ]
    rows = []
    for share in SHARES:
        batches = ((peer.prepare(batch), batch.labels) for batch in reader.batches(some))
        small, report = compress(peer.model, batches, losses, budget=share, fields=dict.fromkeys(joint, firsts))
        after = quality(peer, small, reader, test)
        size = f"{report.bytes_before:,}"
        rows.append(
            [peer.name, size, f"{report.bytes:,}", f"{report.ratio:.1f}", f"{before:.4f}", f"{after - before:+.4f}"]
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoded", type=Path, default=ROOT / "artifacts/encoded", help="folder of encoded data")
    parser.add_argument("--dim", type=int, default=16, help="D of all models")
    parser.add_argument("--epochs", type=int, default=6, help="of each training; the best on val is kept")
    options = parser.parse_args()
    if peers.missing():
        print(f"not installed, left out: {', '.join(peers.missing())}", file=sys.stderr)
    logging.disable(logging.INFO)  # FuxiCTR logs every epoch
    warnings.filterwarnings("ignore")
    data = Encoded.load(options.encoded)
    rows = [row for kind in peers.installed() for row in measured(kind, data, options.dim, options.epochs)]
    head = ["model", "bytes of tables", "coded", "times smaller", "test AUC before", "after"]
    print(table(head, rows))


if __name__ == "__main__":
    main()
