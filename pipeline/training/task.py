"""The contract of a task: what a model predicts for a row, and how predictions are judged.

A task is a file in ``pipeline/tasks`` with the functions of `Contract`. `Task` binds the file to its options, which are
keywords of these functions. All other code uses a task through `Task` only.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from pipeline.data.batches import Batch, Batches
from pipeline.data.encoded import Encoded
from pipeline.data.interactions import Pairs
from pipeline.data.split import Split
from pipeline.models.model import Model
from pipeline.models.nearest import Search
from pipeline.workflow.validation import checked_options, keywords


class Contract(Protocol):
    """The names that a file in ``pipeline/tasks`` defines; options are keyword-only parameters.

    A file may also define ``ceiling(expected, split) -> float``, see `Task.ceiling`; ``groups(predictions, split)``,
    see `Task.groups`; ``probe(model, batch) -> Tensor``, see `Task.probe`; and ``answer(predictions) -> Tensor`` with
    its name ``ANSWER``, see `Task.answer`. Where a model gives several numbers of a row, ``OUTPUTS`` says how many and
    ``COLUMNS`` names those of an answer. Where `influence` is not of rows, ``UNIT`` names what it is of. A task that
    ranks items also defines ``best(model, rows, known, k, search)``, see `Task.best`, and ``seen(split)``, see
    `Task.seen`.

    Attributes:
        METRICS: name of each metric -> its title in tables and on axes. The first metric is the objective: it judges
            epochs, proposals and sweeps, and more is better.
    """

    METRICS: Mapping[str, str]

    def check(self, data: Encoded) -> None:
        """Check that the data suit the task.

        Raises:
            ValueError: with a remedy, if they do not.
        """

    def batches(self, split: Split, batch_size: int, seed: int | None = None) -> Batches:
        """Batches of a split. With a seed, every epoch has a new random order; without one, the rows stay in order."""

    def loss(self, model: Model, batch: Batch) -> Tensor:
        """The mean loss of a batch, a scalar."""

    def predict(self, model: Model, split: Split) -> np.ndarray:
        """Predictions of all rows, in order, by a model in evaluation mode."""

    def measure(self, predictions: np.ndarray, split: Split) -> dict[str, float]:
        """The value of every metric in METRICS; NaN if it is undefined for these rows."""

    def influence(self, predictions: np.ndarray, split: Split) -> np.ndarray:
        """The influence (n,) of every row on the first metric, with mean 0; NaN where the rows do not tell it.

        sum(influence**2) / n**2 is the variance of the metric over the rows. The influence on the difference of two
        models is the difference of their influences.
        """


@dataclass(frozen=True)
class Task:
    """A task and its options. `check` to `influence` are the functions of `Contract` with the options bound.

    Args:
        name: of the file.
        module: the file; see `Contract`.
        options: keywords of its functions; checked.
    """

    name: str
    module: ModuleType
    options: Mapping[str, Any]

    @classmethod
    def of(
        cls, name: str, module: ModuleType, options: Mapping[str, Any], place: str = "params.yaml: task.options"
    ) -> Task:
        """The task, after a check of its options, which stand at ``place``.

        Raises:
            ValueError: naming an unknown or wrong option, and the valid ones.
        """
        functions = [getattr(module, name) for name in _functions()]
        return cls(name, module, checked_options(functions, options, place))

    @property
    def metrics(self) -> Mapping[str, str]:
        """Name of each metric -> its title; see `Contract`."""
        titles: Mapping[str, str] = self.module.METRICS
        return titles

    @property
    def objective(self) -> str:
        """Name of the first metric, which judges epochs, proposals and sweeps."""
        return next(iter(self.metrics))

    @property
    def title(self) -> str:
        """Title of the objective in tables and on axes."""
        return self.metrics[self.objective]

    @cached_property
    def check(self) -> Callable[[Encoded], None]:
        return self._bound("check")

    @cached_property
    def batches(self) -> Callable[..., Batches]:
        return self._bound("batches")

    @cached_property
    def loss(self) -> Callable[[Any, Batch], Tensor]:
        return self._bound("loss")

    @cached_property
    def predict(self) -> Callable[[Any, Split], np.ndarray]:
        return self._bound("predict")

    @cached_property
    def measure(self) -> Callable[[np.ndarray, Split], dict[str, float]]:
        return self._bound("measure")

    @cached_property
    def influence(self) -> Callable[[np.ndarray, Split], np.ndarray]:
        return self._bound("influence")

    @cached_property
    def best(self) -> Callable[[Any, np.ndarray, Pairs | None, int, Search], Iterator[tuple[np.ndarray, np.ndarray]]]:
        """The k best items of each row (n, C), piece by piece: their numbers and their scores, the best first.

        Args of the function: the model, in evaluation mode; the rows; the pairs that are masked if the options say so;
        k; and how the items are found.
        """
        return self._bound("best")

    def seen(self, split: Split) -> Pairs | None:
        """The pairs of a user and an item that predictions for a split leave out; None for none."""
        pairs: Pairs | None = self._bound("seen")(split)
        return pairs

    def ceiling(self, expected: np.ndarray, split: Split) -> float | None:
        """The objective of the true expected labels (n,); None if the task does not define ``ceiling``."""
        function = getattr(self.module, "ceiling", None)
        return None if function is None else float(function(expected, split))

    def groups(self, predictions: np.ndarray, split: Split) -> dict[str, dict[str, float]]:
        """Metrics of groups of what was asked, by name of the group, e.g. of items that are new to the user; empty if
        the task does not define ``groups``."""
        function = getattr(self.module, "groups", None)
        return {} if function is None else dict(function(predictions, split))

    def group_influence(self, predictions: np.ndarray, split: Split) -> dict[str, np.ndarray]:
        """As `influence`, on the first metric of each of the `groups`; only the rows of the group count. Empty if the
        task does not define ``group_influence``."""
        function = getattr(self.module, "group_influence", None)
        return {} if function is None else dict(function(predictions, split))

    @property
    def unit(self) -> str:
        """What `influence` has a number for each of: "rows", or e.g. "users"."""
        return getattr(self.module, "UNIT", "rows")

    @property
    def outputs(self) -> int:
        """K, the numbers that a model gives of a row: outputs (B,) for 1, else (B, K)."""
        return getattr(self.module, "OUTPUTS", 1)

    @property
    def answer_name(self) -> str:
        """What `answer` returns, in a word."""
        return getattr(self.module, "ANSWER", "prediction")

    @property
    def answer_columns(self) -> tuple[str, ...]:
        """The names of the numbers that `answer` returns of a row."""
        return getattr(self.module, "COLUMNS", (self.answer_name,))

    def answer(self, predictions: Tensor) -> Tensor:
        """What a user is told of each row, e.g. a probability; the predictions themselves by default."""
        function = getattr(self.module, "answer", None)
        answer: Tensor = predictions if function is None else function(predictions)
        return answer

    def probe(self, model: Any, batch: Batch) -> Tensor:
        """A scalar whose gradients tell how sensitive the loss is to each row of a batch.

        Let z be the outputs of the model for a row, and H the second derivative of the row's loss in z. The outer
        products of the gradients of the rows average to the Gauss-Newton matrix, mean of J^T H J, e.g. with the sum of
        sqrt(H) z for scalar outputs. A task that does not define ``probe`` uses its loss: the outer products then
        average to the empirical Fisher matrix.
        """
        function = getattr(self.module, "probe", None)
        if function is None:
            return self.loss(model, batch) * len(batch.ids)
        probe: Tensor = self._bound("probe")(model, batch)
        return probe

    def _bound(self, name: str) -> Callable[..., Any]:
        function: Callable[..., Any] = getattr(self.module, name)
        options = {key: value for key, value in self.options.items() if key in keywords(function)}
        return partial(function, **options) if options else function


def _functions() -> list[str]:
    """The names of the functions of `Contract`."""
    return [name for name, member in vars(Contract).items() if inspect.isfunction(member) and not name.startswith("_")]
