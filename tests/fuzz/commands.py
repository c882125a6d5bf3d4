"""What commands do with a file, without what else they need: the store of a server, DVC or git."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from pathlib import Path

from pipeline.experiment.experiment import check_params
from pipeline.tracking import sync
from pipeline.workflow.outputs import write_text
from pipeline.workflow.overlay import laid_over
from pipeline.workflow.params import FILE, Params
from pipeline.workflow.validation import validated
from pipeline.workflow.yaml_values import values_of

OWN, JOURNAL, SYNCHRONISED = Path("params/own.yaml"), Path("artifacts/runs/derive.jsonl"), Path("synchronised.json")


def settings() -> None:
    """``stages.settings``, with the params.yaml that is there as the committed one."""
    text = laid_over(FILE.read_text(encoding="utf-8"), OWN)
    check_params(validated(Params, values_of(text), str(OWN)), str(OWN))
    write_text(FILE, text)


def synchronise() -> None:
    """``stages.sync``, of one journal; `SYNCHRONISED` gets what MLflow's database then holds."""
    for line in sync.synchronise(Path().resolve(), Params.load().configuration(), [JOURNAL]):
        print(line)
    with contextlib.closing(sqlite3.connect("mlflow.db")) as store:
        found = {
            "metrics": sorted(store.execute("select key, value, step from metrics")),
            "params": sorted(store.execute("select key, value from params")),
        }
    SYNCHRONISED.write_text(json.dumps(found))
