"""The forms that the models of an allocation can take, and the choice of the one to deploy.

A form is an allocation as it was trained, in int8, in int4 or coded. Nothing here serves tables in int4: this form is a
control. The choice is made on ``val``; the test rows only describe it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.data.split import Split
from pipeline.metrics.difference import Difference, difference, row_variance, spread
from pipeline.training.task import Task

Entry = Mapping[str, Any]  # of `entries`
TRAINED, INT8, INT4, CODED = "as trained", "int8", "int4", "coded"


@dataclass(frozen=True)
class Quality:
    """The objective of one model.

    Args:
        val, test: on these rows.
        influence: (n,) of each test row on the objective; see `pipeline.training.task.Contract`.
    """

    val: float
    test: float
    influence: np.ndarray


def quality(task: Task, model: Any, val: Split, test: Split) -> Quality:
    """The quality of a trained or of a served model."""
    predictions = task.predict(model, test)
    of_test = task.measure(predictions, test)[task.objective]
    return Quality(objective(task, model, val), of_test, task.influence(predictions, test))


def objective(task: Task, model: Any, rows: Split) -> float:
    """The objective of a trained or of a served model on some rows."""
    return task.measure(task.predict(model, rows), rows)[task.objective]


@dataclass
class Form:
    """The models of all seeds in one form.

    Args:
        allocation: its name, e.g. ``searched``.
        kind: `TRAINED`, `INT8`, `INT4` or `CODED`.
        packed: whether `pipeline.serving` can write it into one file.
        budget: of coded tables, as `pipeline.allocation.budget.in_bytes` takes it. Their codes depend on it, and do not
            fill it to the byte.
        sizes: bytes of the embedding, for each seed.
        model_sizes: bytes of the whole model, for each seed.
        val, test: the objective, for each seed.
        influence: (n,) summed over the seeds, see `Quality`; a sum takes the memory of one seed.
    """

    allocation: str
    kind: str
    packed: bool = True
    budget: float | None = None
    unit: str = "rows"
    sizes: list[int] = field(default_factory=list)
    model_sizes: list[int] = field(default_factory=list)
    val: list[float] = field(default_factory=list)
    test: list[float] = field(default_factory=list)
    influence: np.ndarray | float = 0.0

    def add(self, size: int, model_size: int, quality: Quality) -> None:
        """Add the model of one more seed."""
        self.sizes.append(size)
        self.model_sizes.append(model_size)
        self.val.append(quality.val)
        self.test.append(quality.test)
        self.influence = self.influence + quality.influence

    @property
    def name(self) -> str:
        """E.g. "full", "full in int8" or "full, coded"."""
        return self.allocation + {TRAINED: "", CODED: ", coded"}.get(self.kind, f" in {self.kind}")

    @property
    def bytes(self) -> int:
        """The mean over the seeds."""
        return round(float(np.mean(self.sizes)))

    @property
    def model_bytes(self) -> int:
        """The mean over the seeds."""
        return round(float(np.mean(self.model_sizes)))

    def spreads(self) -> dict[str, Any]:
        """The objective on ``val`` and ``test`` over the seeds."""
        return {"val": spread(self.val), "test": spread(self.test)}

    def minus(self, other: Form) -> Difference:
        """The difference of the objective on ``test``, over seeds and rows, or users."""
        influence = np.asarray(self.influence - other.influence) / len(self.test)
        return difference(self.test, other.test, row_variance(influence), len(influence), self.unit)

    def compared(self, other: Form) -> dict[str, Any]:
        """The entry of the report for this form minus another one."""
        return {"against": other.name, **self.minus(other).to_dict(), "bytes_ratio": self.bytes / other.bytes}


def entries(forms: Sequence[Form], full: Form | None, tables: int) -> list[dict[str, Any]]:
    """The forms for the report, by rising bytes.

    Args:
        forms: those of all allocations.
        full: the full models as they were trained, if there are any; every other form is compared with them.
        tables: bytes of the full tables.
    """
    return [
        {
            "name": form.name,
            "allocation": form.allocation,
            "kind": form.kind,
            "packed": form.packed,
            "budget": form.budget,
            "bytes": form.bytes,
            "ratio": form.bytes / tables,
            "model_bytes": form.model_bytes,
            **form.spreads(),
            "minus_full": None if full is None or form is full else form.minus(full).to_dict(),
        }
        for form in sorted(forms, key=lambda form: form.bytes)
    ]


def deployable(entries: Sequence[Entry]) -> list[Entry]:
    """The forms that this project can write for deployment."""
    return [entry for entry in entries if entry["kind"] == TRAINED or (entry["kind"] != INT4 and entry["packed"])]


def deploy(entries: Sequence[Entry], tolerance: float) -> str:
    """The name of the form to deploy: the smallest deployable one that is `as_good`."""
    name: str = smallest(as_good(deployable(entries), tolerance))["name"]
    return name


def as_good(entries: Sequence[Entry], tolerance: float) -> list[Entry]:
    """The forms that cost less than ``tolerance`` of the mean objective on ``val``.

    The cost is the distance from the full models as they were trained, or from the best form if there are none.

    Args:
        entries: see `entries`.
        tolerance: of the parameters.
    """
    val = {entry["name"]: entry["val"]["mean"] for entry in entries}
    reference = "full" if "full" in val else max(val, key=lambda name: val[name])
    return [one for one in entries if one["name"] == reference or val[one["name"]] > val[reference] - tolerance]


def smallest(entries: Sequence[Entry]) -> Entry:
    """The form of the fewest bytes; of equal ones, the best on ``val``."""
    return min(entries, key=lambda one: (one["bytes"], -one["val"]["mean"]))
