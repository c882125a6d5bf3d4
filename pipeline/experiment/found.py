"""The findings of a search, which the derivation reads; see `pipeline.experiment.find`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.arrays import decoded, encoded, most_bytes
from pipeline.allocation.evidence import Trial
from pipeline.data.schema import Schema
from pipeline.workflow.outputs import broken, read_json
from pipeline.workflow.params import LARGEST_DIM

Trajectory = list[tuple[int, float, Tensor]]  # step, tau, probabilities (F, N)


@dataclass(frozen=True)
class Found:
    """The findings of a search: the contents of ``scores.json``, and the trajectory.

    Args:
        method: name of the method.
        seed: of the search.
        dim: D.
        names: of the F fields.
        candidates: for each field its candidate dims.
        scores: for each field the log-probability of each candidate; None if the method does not score candidates.
        arrays: for the method's ``derive``.
        trials: the method's proposals after training.
        undecided: fields whose most probable candidate leads the second by less than ``architecture.margin``.
        validation: for every epoch, the step and the supernet's metrics on ``val``.
        steps, planned_steps: weight steps of the supernet, done and planned; None without a supernet.
        training_bytes: bytes of the supernet in training; None without a supernet.
        trajectory: all recorded points; they are stored in a file of their own.
    """

    method: str
    seed: int
    dim: int
    names: tuple[str, ...]
    candidates: tuple[tuple[int, ...], ...]
    scores: tuple[tuple[float, ...], ...] | None = None
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    trials: tuple[Trial, ...] = ()
    undecided: tuple[str, ...] = ()
    validation: Sequence[Mapping[str, float]] = ()
    steps: int | None = None
    planned_steps: int | None = None
    training_bytes: int | None = None
    trajectory: Trajectory = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """All findings except the trajectory, as JSON values."""
        features: dict[str, dict[str, Any]] = {
            name: {"candidates": list(dims)} for name, dims in zip(self.names, self.candidates, strict=True)
        }
        for name, scores in zip(self.names, self.scores or [], strict=self.scores is not None):
            features[name]["log_probability"] = list(scores)
        record: dict[str, Any] = {"method": self.method, "seed": self.seed, "dim": self.dim, "features": features}
        record |= {"undecided": list(self.undecided), "validation": [dict(entry) for entry in self.validation]}
        if self.steps is not None:
            record |= {"steps": self.steps, "planned_steps": self.planned_steps}
            record["training_bytes"] = self.training_bytes
        if self.arrays:
            record["arrays"] = encoded(self.arrays)
        if self.trials:
            record["trials"] = [
                {"allocation": trial.allocation.to_dict(), "quality": trial.quality, "bytes": trial.bytes}
                for trial in self.trials
            ]
        return record

    @classmethod
    def load(cls, path: str | Path, schema: Schema, all_fields: bool = True) -> Found:
        """The findings in a JSON file of `to_dict`.

        Args:
            path: of the file.
            schema: of the encoded data.
            all_fields: whether the findings must be about all fields of ``schema``, or may be about some, in its order.

        Raises:
            ValueError: naming the file, if it is incomplete or has other fields than ``schema``.
            FileNotFoundError: if the file does not exist.
        """
        record = read_json(path)
        try:
            found = cls._from_dict(record, schema)
        except ValueError as error:
            raise broken(path, f"is not what a search writes: {error}") from error
        except (KeyError, TypeError, AttributeError) as error:
            raise broken(path, f"is not what a search writes ({type(error).__name__}: {error})") from error
        wanted = schema.names
        if not all_fields:
            wanted = tuple(name for name in schema.names if name in found.names)
        if found.names != wanted or not wanted:
            raise broken(path, "has other fields than the schema of the encoded data")
        return found

    @classmethod
    def _from_dict(cls, record: Mapping[str, Any], schema: Schema) -> Found:
        features = record["features"]
        scored = any("log_probability" in feature for feature in features.values())
        trials = [
            Trial(Allocation.from_dict(trial["allocation"], schema), float(trial["quality"]), int(trial["bytes"]))
            for trial in record.get("trials", [])
        ]
        dim = _whole("dim", record["dim"], 1, LARGEST_DIM)
        return cls(
            method=str(record["method"]),
            seed=_whole("seed", record["seed"], 0),
            dim=dim,
            names=tuple(features),
            candidates=tuple(
                tuple(_whole(f"a candidate of {name!r}", d, 0, dim) for d in feature["candidates"])
                for name, feature in features.items()
            ),
            scores=tuple(_scores(name, f) for name, f in features.items()) if scored else None,
            arrays=decoded(record.get("arrays", {}), most_bytes(schema.num_rows)),
            trials=tuple(trials),
            undecided=tuple(record["undecided"]),
            validation=tuple(record["validation"]),
            steps=record.get("steps"),
            planned_steps=record.get("planned_steps"),
            training_bytes=record.get("training_bytes"),
        )


def _whole(name: str, value: object, least: int, most: int | None = None) -> int:
    if type(value) is not int or value < least or (most is not None and value > most):
        bounds = f"of at least {least}" if most is None else f"from {least} to {most:,}"
        raise ValueError(f"{name} must be a whole number {bounds}, got {value!r}")
    return value


def _scores(name: str, feature: Mapping[str, Any]) -> tuple[float, ...]:
    """The scores of a field, one for each candidate; NaN is left to the derivation."""
    scores = feature.get("log_probability")
    wanted = len(feature["candidates"])
    if not isinstance(scores, list) or len(scores) != wanted or any(type(s) not in (int, float) for s in scores):
        raise ValueError(f"field {name!r} must have {wanted} numbers as scores, one for each candidate, got {scores!r}")
    return tuple(scores)
