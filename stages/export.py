"""Export a trained model to a folder that stands alone.

    python -m stages.export artifacts/models/searched/seed-0 model
    python -m stages.export artifacts/models/full/seed-0 model --budget 0.025
    python -m stages.export artifacts/models/searched/seed-0 model --format onnx

The formats: ``served``, packed or coded tables in one file, which ``stages.score`` takes; ``trained``, the model as it
was trained, likewise; ``onnx`` and ``pt2``, which map ids to probabilities; ``mlflow``, which maps raw rows to
probabilities, and which ``mlflow models serve`` answers with over HTTP. ``--budget`` codes full tables, as the report's
curve does; it needs the ``artifacts/encoded`` and the params.yaml with which the model was trained.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pipeline.data.encoded import Encoded
from pipeline.experiment.experiment import Experiment
from pipeline.scoring.export import FORMS, export
from pipeline.tracking.place import StoreError
from pipeline.tracking.pyfunc import register
from pipeline.workflow import process
from pipeline.workflow.params import Params
from pipeline.workflow.places import ENCODED, root


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL", help="a folder that retrain wrote")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write")
    parser.add_argument("--format", choices=FORMS, default="served")
    parser.add_argument("--int8", action="store_true", help="round plain tables to int8 (served and mlflow)")
    parser.add_argument("--budget", type=_budget, metavar="BUDGET", help="bytes of the coded tables, or a share: 0.025")
    parser.add_argument("--register", metavar="NAME", help="also make it a version of this model in MLflow (mlflow)")
    given = parser.parse_args()
    if given.register and given.format != "mlflow":
        raise ValueError(f"--register takes a model in the format mlflow, got {given.format}; add --format mlflow")
    written = export(given.model, given.out, given.format, given.int8, given.budget, _experiment)
    print(f"export: {written}")
    if given.register:
        try:
            version = register(given.out, given.register, f"Exported from {given.model} to {written}", root())
        except StoreError as error:
            sys.exit(f"error: {error}; the model is in {given.out}")
        print(f"export: version {version} of {given.register}, models:/{given.register}/{version}")


def _budget(text: str) -> float:
    return int(text) if text.isdecimal() else float(text)


def _experiment() -> Experiment:
    """Of the params.yaml and the encoded data of this repository."""
    return Experiment(Params.load(), Encoded.load(root() / ENCODED))


if __name__ == "__main__":
    process.main(run, arguments=True)
