"""What each part of the coding adds: full models, coded at the same sizes by coarser choices, with no training after.

Reads encoded data and the settings of a params.yaml, trains a full model for each seed, or loads the one that an
earlier run left in the folder of models, and prints the objective on `test` minus that of the full model.

    python -m benchmarks.ablation --encoded artifacts/encoded --params params.yaml --models /tmp/models --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.coarser import Unit, choose_by
from pipeline.allocation.allocation import Allocation
from pipeline.allocation.budget import TooFewBytes
from pipeline.data.encoded import Encoded
from pipeline.embeddings.coded import Moments, predictions
from pipeline.embeddings.cost import full_tables
from pipeline.experiment.code import Coder
from pipeline.experiment.experiment import Experiment
from pipeline.experiment.method import build
from pipeline.experiment.train import train
from pipeline.metrics.difference import spread
from pipeline.models.model import Model, assemble
from pipeline.reporting.text import table
from pipeline.workflow.outputs import whole
from pipeline.workflow.params import Params

SHARES = (0.1, 0.05, 0.025, 0.01)
ROWS: Mapping[str, tuple[Unit, bool]] = {  # name -> unit of the choice, whether errors cost what the loss says
    "the same dimension and bits for all fields": ("all", True),
    "(d, b) per field": ("field", True),
    "(d, b) per field and block": ("block", True),
    "bits per field, block and component": ("component", True),
    "the same, by squared error instead of the loss": ("component", False),
    "the same, by random importance": ("random", True),
}


def trained(experiment: Experiment, seed: int, models: Path) -> Model:
    """The full model of a seed, trained if it is not in the folder yet."""
    allocation = Allocation("full", dict.fromkeys(experiment.schema.names, experiment.dim))
    file = models / f"full-{seed}.pt"
    if not file.exists():
        model = train(experiment, allocation, seed, models / f"full-{seed}.ckpt").model
        with whole(file) as draft:
            torch.save(model.state_dict(), draft)
        (models / f"full-{seed}.ckpt").unlink(missing_ok=True)
    options = experiment.backbone_options
    model = assemble(experiment.schema, experiment.dim, allocation, build, experiment.backbone, options)
    model.load_state_dict(torch.load(file))
    return model.eval()


def differences(experiment: Experiment, model: Model, shares: Sequence[float]) -> dict[tuple[str, float], float]:
    """The objective on ``test`` minus that of the full model, by row and share; without sizes that are impossible."""
    task, test = experiment.task, experiment.data.split("test")
    full = full_tables(experiment.schema, experiment.dim).bytes

    def objective(of: Model) -> float:
        return task.measure(task.predict(of, test), test)[task.objective]

    before, found, coder = objective(model), {}, Coder(experiment, model)
    by_length = Moments.neutral(model.kept, coder.table.shape[1])  # an error costs its squared length, as in PCA
    moments = {True: coder.moments, False: Moments(coder.moments.weights, by_length.metrics)}
    predicted = {by_loss: predictions(coder.table, model.kept, of) for by_loss, of in moments.items()}
    for name, (unit, by_loss) in ROWS.items():
        for share in shares:
            try:
                plans = choose_by(predicted[by_loss], int(share * full), unit)
                found[name, share] = objective(coder.coded_by(plans, moments[by_loss])) - before
            except TooFewBytes as error:
                print(f"{name}, {share:.1%}: {error}", file=sys.stderr)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoded", type=Path, default=Path("artifacts/encoded"), help="folder of encoded data")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="settings of the training")
    parser.add_argument("--models", type=Path, required=True, help="folder of trained models, read and written")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES, help="of the full tables' bytes")
    options = parser.parse_args()
    experiment = Experiment(Params.load(options.params), Encoded.load(options.encoded))
    options.models.mkdir(parents=True, exist_ok=True)
    models = (trained(experiment, seed, options.models) for seed in options.seeds)
    found = [differences(experiment, model, options.shares) for model in models]
    rows = []
    for name in ROWS:
        cells = []
        for share in options.shares:
            values = [of_seed[name, share] for of_seed in found if (name, share) in of_seed]
            sd = spread(values)["sd"] if len(values) > 1 else np.nan
            cells.append(f"{np.mean(values):+.4f} ± {sd:.4f}" if values else "–")
        rows.append([name, *cells])
    print(table([f"{len(found)} seeds, test minus full", *(f"{share:.1%}" for share in options.shares)], rows))


if __name__ == "__main__":
    main()
