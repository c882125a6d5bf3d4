"""Where a study's results are, and whether they are still those of its cells.

A cell's result is named by its key: the cell's recipe (parameters, arms, seeds, code) and the encoded data. A result
with another key is of something else, and is not used. Results that a report has kept, in
``results/<profile>/cells``, count for whoever has the repository and not its DVC cache.
"""

from __future__ import annotations

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
    """The results of one study, relative to its folder.

    Args:
        study: whose they are.
    """

    study: Study

    @property
    def keys(self) -> Path:
        """Folder of recipes, which DVC compares to decide what has to run again."""
        return ARTIFACTS / "keys" / self.study.profile

    def data(self, dataset: str) -> Path:
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
        """The key of a cell; None where its data are not here."""
        schema = self.data(cell.keys["dataset"]) / SCHEMA_FILE
        return content_key([], cell.recipe(), inputs=[schema]) if schema.is_file() else None

    def find(self, cell: Cell) -> dict[str, Any] | None:
        """A cell's result, computed here or kept by a report; None if neither is the cell's."""
        key = self.key(cell)
        for path in (self.own(cell), self.kept(cell)):
            if key is not None and path.is_file():
                result: dict[str, Any] = read_json(path)
                if result.get("key") == key:
                    return result
        return None

    def unknown(self, cell: Cell) -> dict[str, Any] | None:
        """A result that a report has kept of data that are not here to compare it with."""
        if self.key(cell) is not None or not self.kept(cell).is_file():
            return None
        result: dict[str, Any] = read_json(self.kept(cell))
        return result
