"""Stage 0: check all of params.yaml, with plugs and their options, before anything else runs.

Writes ``artifacts/checked.json``, which never changes, so no other stage runs again because of this one.
"""

from __future__ import annotations

from pipeline.experiment.experiment import check_params
from pipeline.workflow import process
from pipeline.workflow.outputs import write_json
from pipeline.workflow.params import Params
from pipeline.workflow.places import CHECKED


def run() -> None:
    check_params(Params.load())
    write_json(CHECKED, {"params.yaml": "checked"})


if __name__ == "__main__":
    process.main(run)
