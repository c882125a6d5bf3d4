"""The folder that ``encode`` writes: the schema, statistics of the labels, and the rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.data.schema import Schema
from pipeline.data.split import PARTS, Part, Split
from pipeline.workflow.outputs import broken, read_json

SCHEMA_FILE, VOCABULARY_FILE = "schema.json", "vocabulary.parquet"


@dataclass(frozen=True)
class Labels:
    """Statistics of the labels of one part.

    Args:
        rows: number of labels.
        mean, least, most: mean, minimum and maximum.
        binary: whether all labels are 0 or 1.
    """

    rows: int
    mean: float
    least: float
    most: float
    binary: bool


@dataclass(frozen=True)
class Encoded:
    """An encoded data set.

    Args:
        folder: of its files.
        schema: F fields.
        labels: statistics of the labels of every part.
        record: the contents of schema.json.
    """

    folder: Path
    schema: Schema
    labels: Mapping[Part, Labels]
    record: Mapping[str, Any] = field(repr=False)

    @classmethod
    def load(cls, folder: str | Path) -> Encoded:
        """The data set in a folder. Only schema.json is read; `split` opens the rows.

        Raises:
            ValueError: naming the file, if ``encode`` did not write it in this form.
            FileNotFoundError: if there is no schema.json.
        """
        folder = Path(folder)
        file = folder / SCHEMA_FILE
        record = read_json(file)
        schema = Schema.load(file)
        try:
            labels = {part: Labels(**record["labels"][part]) for part in PARTS}
        except (KeyError, TypeError) as error:
            raise broken(file, f"does not describe the labels ({type(error).__name__}: {error})") from error
        return cls(folder, schema, labels, record)

    @property
    def raw_sha256(self) -> str:
        """Checksum of the raw table; it identifies the data set."""
        return str(self.record["raw_sha256"])

    @property
    def facts(self) -> Mapping[str, Any]:
        """The facts that the data set's plug states, e.g. planted ranks."""
        facts: Mapping[str, Any] = self.record.get("facts", {})
        return facts

    def split(self, *parts: Part) -> Split:
        """The rows of the named parts, memory-mapped.

        Raises:
            ValueError: naming a broken file.
        """
        return Split.load(self.folder, *parts)

    def expected_labels(self, part: Part) -> Path | None:
        """The .npy file of the true expected labels, (n,) float64; None if the data are not planted."""
        file = self.folder / part / "oracle.npy"
        return file if file.is_file() else None
