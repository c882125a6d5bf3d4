"""Do tables learn as well from row-sparse updates as from dense Adam? AUC on MovieLens-1M, paired by seed.

DeepFM on the full tables, trained as in `stages.retrain`, with the parameters of params.yaml except those below. For
each seed, both arms have the same initial weights, batches and dropout. Only the optimiser differs:

* row-sparse: the project's own, `RowAdam` on the tables and Adam on the rest;
* dense: Adam on everything. Rows that a batch does not look up keep moving with their momentum, and their moments
  decay.

The epoch is chosen by the AUC on ``val``, and its weights are evaluated on ``test``.

    python -m benchmarks.optimisers --full --data ../ml-1m
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks import models, timing
from benchmarks.alone import ROOT
from benchmarks.encoders.product import ingest
from pipeline.data.encoded import Encoded
from pipeline.encoding.encode import encode
from pipeline.experiment.experiment import Experiment
from pipeline.experiment.measure import measure
from pipeline.experiment.train import prepare
from pipeline.metrics.difference import difference, spread
from pipeline.sources.opening import opened
from pipeline.sources.source import NotFound
from pipeline.studies.grid import merged
from pipeline.training.loop import fit
from pipeline.training.weights import LitWeights
from pipeline.workflow.outputs import write_json
from pipeline.workflow.params import Params
from pipeline.workflow.validation import validated
from pipeline.workflow.yaml_values import read_yaml

DATA = "../ml-1m"
DIM, LR, EPOCHS = 16, 0.003, 8
WORSE = 0.0005  # AUC that row-sparse updates may cost at most
PARTS = ("val", "test")
SPARSE, DENSE = "row-sparse", "dense"


class DenseWeights(LitWeights):
    """The same training with dense Adam on all weights."""

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        adam = torch.optim.Adam(self.weights(), lr=self.lr, fused=True)
        adam.register_step_pre_hook(_densify)
        return [adam]


def _densify(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    for group in optimizer.param_groups:
        for param in group["params"]:
            if param.grad is not None and param.grad.is_sparse:
                param.grad = param.grad.to_dense()


ARMS: dict[str, type[LitWeights]] = {SPARSE: LitWeights, DENSE: DenseWeights}


def params(data: str = DATA, **retrain: Any) -> Params:
    """The repository's parameters, for DeepFM on the full tables of MovieLens-1M.

    Args:
        data: folder or zip of the data set, relative to the repository.
        retrain: changes of the section ``retrain``.
    """
    changes = {
        "dataset": {"name": "movielens_1m", "path": data, "options": {}},
        "dim": DIM,
        "method": {"name": "full"},
        "backbone": {"name": "deepfm", "options": {}},
        "retrain": {"lr": LR, "epochs": EPOCHS, "checkpoint_seconds": models.NEVER, **retrain},
    }
    return validated(Params, merged(read_yaml(ROOT / "params.yaml"), changes), "params.yaml, changed")


def run(quick: bool, data: str = DATA) -> dict[str, Any]:
    """Train both arms; quick: two seeds of three epochs, else five of eight.

    Raises:
        NotFound: if the data are not there.
    """
    chosen = params(data, seeds=list(range(2)), epochs=3) if quick else params(data, seeds=list(range(5)))
    with tempfile.TemporaryDirectory() as folder:
        return compare(Experiment(chosen, prepare_data(chosen, Path(folder))))


def prepare_data(params: Params, folder: Path) -> Encoded:
    """The data set, ingested and encoded."""
    ingest(opened(params.dataset), folder / "raw")
    encode(folder / "raw", folder / "encoded", params.encode)
    return Encoded.load(folder / "encoded")


def compare(experiment: Experiment) -> dict[str, Any]:
    """Train both arms with every seed.

    Returns:
        ``cells``: one entry for each seed and arm, see `train`. ``arms``: for each arm the `spread` of the AUC on
        ``val`` and on ``test``. ``differences``: row-sparse minus dense, over the seeds, see
        `pipeline.metrics.difference`. ``settings``, ``targets``.
    """
    settings = experiment.params.retrain
    cells: list[dict[str, Any]] = [
        {"seed": seed, "arm": arm} | train(arm, experiment, seed) for seed in settings.seeds for arm in ARMS
    ]
    reached = {
        arm: {part: [cell[f"{part} auc"] for cell in cells if cell["arm"] == arm] for part in PARTS} for arm in ARMS
    }
    differences = {part: difference(reached[SPARSE][part], reached[DENSE][part]).to_dict() for part in PARTS}
    mean = differences["test"]["mean"]
    what = "row-sparse updates, mean AUC on test minus that of dense Adam"
    return {
        "settings": {"dim": experiment.dim, **settings.model_dump(mode="json")},
        "cells": cells,
        "arms": {arm: {part: spread(values) for part, values in parts.items()} for arm, parts in reached.items()},
        "differences": differences,
        "targets": [timing.target(what, mean, at_least=-WORSE)],
    }


def train(arm: str, experiment: Experiment, seed: int) -> dict[str, Any]:
    """One training: ``val auc`` of the best epoch, its ``test auc``, the ``history``, ``steps`` and ``seconds``."""
    settings = experiment.params.retrain
    like, batches = prepare(experiment, models.full(experiment.schema, experiment.dim), seed, settings, None)
    module = ARMS[arm](
        like.model,
        like.task,
        like.validation,
        like.planned,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        patience=settings.patience,
    )
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning")  # its hints at workers
        checkpoint = Path(folder) / "none.ckpt"
        fit(module, batches, settings.epochs, f"{arm}, seed {seed}", checkpoint, settings.checkpoint_seconds)
    seconds = time.perf_counter() - began
    module.model.load_state_dict(module.best)
    return {
        "val auc": module.history[module.best_epoch()]["auc"],
        "test auc": measure(experiment, module.model, experiment.data.split("test")).metrics["auc"],
        "history": module.history,
        "steps": module.steps,
        "seconds": seconds,
    }


def table(results: Mapping[str, Any]) -> str:
    settings, arms = results["settings"], results["arms"]
    rows = [(arm, *(_mean_sd(parts[part]) for part in PARTS)) for arm, parts in arms.items()]
    rows.append(("row-sparse minus dense", *(_with_interval(results["differences"][part]) for part in PARTS)))
    low, high = results["differences"]["test"]["interval"]
    return "\n\n".join(
        [
            "## Row-sparse updates beside dense Adam",
            f"MovieLens-1M, DeepFM on the full tables, D = {settings['dim']}, learning rate {settings['lr']}, "
            f"{len(settings['seeds'])} seeds of up to {settings['epochs']} epochs. AUC, mean ± standard deviation:",
            timing.markdown(("optimiser of the tables", *PARTS), rows),
            f"The interval of the difference on test {'includes' if low <= 0 <= high else 'does not include'} 0. "
            f"A loss of more than {WORSE} is {'excluded' if low >= -WORSE else 'not excluded by so few seeds'}.",
        ]
    )


def _mean_sd(figures: Mapping[str, Any]) -> str:
    return f"{figures['mean']:.4f} ± {figures['sd']:.4f}"


def _with_interval(figures: Mapping[str, Any]) -> str:
    low, high = figures["interval"]
    return f"{figures['mean']:+.4f} (95 %: {low:+.4f} to {high:+.4f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=DATA, help="MovieLens-1M, a folder or zip; relative to the repository")
    parser.add_argument("--full", action="store_true", help="five seeds of eight epochs, instead of two of three")
    parser.add_argument("--json", type=Path, help="a file for all figures")
    options = parser.parse_args()
    try:
        results = run(not options.full, options.data)
    except NotFound as error:
        sys.exit(f"optimisers: {error}; name the published files of MovieLens-1M with --data")
    if options.json:
        write_json(options.json, results)
    print(table(results))


if __name__ == "__main__":
    main()
