"""Code a trained full model at any number of bytes; no training follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from pipeline.coding.choice import Choices, Plan
from pipeline.coding.prediction import Prediction
from pipeline.embeddings.coded import CodedTables, ExaminedTables, Moments, full_table, predictions
from pipeline.embeddings.mixed import MixedTables
from pipeline.experiment.experiment import Experiment
from pipeline.models.model import first_order_of
from pipeline.models.retriever import AnyModel
from pipeline.training.calibration import calibrated


@dataclass
class Coder:
    """Codes a trained model with full tables; what it has to know of the data is computed once.

    Args:
        experiment: of the model.
        model: trained, with full tables.

    Raises:
        ValueError: if the embedding of the model is not made of full tables.
    """

    experiment: Experiment
    model: AnyModel

    def __post_init__(self) -> None:
        if not isinstance(self.model.embedding, MixedTables):
            raise ValueError(f"only full tables can be coded, got {type(self.model.embedding).__name__}")
        first_order = first_order_of(self.model.backbone)
        self.table: Tensor = full_table(self.model.embedding, first_order.table if first_order else None)

    @cached_property
    def moments(self) -> Moments:
        experiment = self.experiment
        full = ExaminedTables(self.model.kept, experiment.dim)
        model = self.model.rebuilt(full)
        full.load(self.table)
        return Moments.of(calibrated(experiment.task, model, experiment.training_rows()))

    @cached_property
    def predictions(self) -> list[Prediction]:
        """The predicted loss of each way to code each field."""
        return predictions(self.table, self.model.kept, self.moments)

    @cached_property
    def _choices(self) -> Choices:
        return Choices(self.predictions)

    def plans(self, limit: int) -> list[Plan]:
        """The plan of each field within ``limit`` bytes.

        Raises:
            TooFewBytes: if there is none.
        """
        return self._choices.within(limit)[0]

    def coded(self, limit: int) -> AnyModel:
        """A copy of the model whose tables are coded within ``limit`` bytes."""
        return self.coded_by(self.plans(limit), self.moments)

    def coded_by(self, plans: Sequence[Plan], moments: Moments) -> AnyModel:
        """A copy of the model whose tables are coded by other plans, or in the coordinates of other moments."""
        return self.model.rebuilt(CodedTables.of(self.table, self.model.kept, self.experiment.dim, plans, moments))
