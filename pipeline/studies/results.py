"""The files of a study's results, and the check that they are up to date.

Each result contains the key of its cell: a hash of the cell's recipe (parameters, arms, seeds, code) and of the encoded
data. A result with another key is out of date and is not used. Reports keep results in ``results/<profile>/cells``, for
users who have the repository without its DVC cache.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data.encoded import SCHEMA_FILE
from pipeline.studies import data
from pipeline.studies.grid import Cell, Study
from pipeline.workflow.code import content_key
from pipeline.workflow.outputs import read_json, whole, write_json

ARTIFACTS = Path("artifacts")


@dataclass(frozen=True)
class Results:
    """The results of one study. All paths are relative to the study's folder.

    Args:
        study: its definition.
    """

    study: Study

    @property
    def keys(self) -> Path:
        """Folder of the recipes. DVC compares them to decide which stages run again."""
        return ARTIFACTS / "keys" / self.study.profile

    def data(self, dataset: str) -> Path:
        """Folder of the encoded data of a data set."""
        return ARTIFACTS / "data" / self.study.profile / dataset

    def own(self, cell: Cell) -> Path:
        """The result that this checkout computed."""
        return ARTIFACTS / "cells" / self.study.profile / f"{cell.name}.json"

    def kept(self, cell: Cell) -> Path:
        """The result that a report has kept."""
        return Path("results") / self.study.profile / "cells" / f"{cell.name}.json"

    def write_keys(self) -> None:
        """Write the recipe of every cell, of every data set, and of the report."""
        cells = self.study.cells()
        with whole(self.keys) as folder:
            for cell in cells:
                write_json(folder / "cells" / f"{cell.name}.json", {"recipe": cell.recipe()})
            for dataset in dict.fromkeys(cell.keys["dataset"] for cell in cells):
                recipe = data.recipe(self.study.dataset(dataset))
                write_json(folder / "data" / f"{dataset}.json", {"recipe": recipe})
            values = {"grid": self.study.grid, "seeds": list(self.study.seeds)}
            published = sorted(self.study.folder.glob("*.csv"))  # claims, and figures of the paper
            key = content_key(["pipeline/studies/report.py"], values, inputs=published)
            write_json(folder / "report.json", {"recipe": key})

    def key(self, cell: Cell) -> str | None:
        """The key of a cell; None if its encoded data are missing."""
        schema = self.data(cell.keys["dataset"]) / SCHEMA_FILE
        return content_key([], cell.recipe(), inputs=[schema]) if schema.is_file() else None

    def find(self, cell: Cell) -> dict[str, Any] | None:
        """The result of a cell, computed here or kept by a report; None if neither has the cell's key."""
        key = self.key(cell)
        for path in (self.own(cell), self.kept(cell)):
            if key is not None and path.is_file():
                result: dict[str, Any] = read_json(path)
                if result.get("key") == key:
                    return result
        return None

    def unknown(self, cell: Cell) -> dict[str, Any] | None:
        """A result that a report has kept and that cannot be checked, because the encoded data are missing; or None."""
        if self.key(cell) is not None or not self.kept(cell).is_file():
            return None
        result: dict[str, Any] = json.loads(self.kept(cell).read_text())  # of older code, which may hold NaN
        return result
