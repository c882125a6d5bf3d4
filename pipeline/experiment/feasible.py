"""Checks before any training that later stages, too, can work with their parameters on these data."""

from __future__ import annotations

from dataclasses import replace

from pipeline.data.split import Part
from pipeline.embeddings.contract import FieldEmbedding
from pipeline.experiment.derive import derive, evidence
from pipeline.experiment.experiment import Experiment
from pipeline.experiment.find import nothing_found, problem
from pipeline.workflow.params import Params, Training


def check_batch_size(experiment: Experiment, section: str, settings: Training, *parts: Part) -> None:
    """Check that a batch has at most as many rows as there are.

    Args:
        experiment: holds the data.
        section: of params.yaml, for the message.
        settings: of the section.
        parts: whose rows are trained on.

    Raises:
        ValueError: naming the rows and the parameter.
    """
    rows = sum(experiment.data.labels[part].rows for part in parts)
    if settings.batch_size > rows:
        raise ValueError(
            f"params.yaml: {section}.batch_size must be at most {rows:,}, the rows of {' and '.join(parts)}, got "
            f"{settings.batch_size:,}; lower it, or give more rows"
        )


def check_feasible(experiment: Experiment, params: Params) -> None:
    """Check the batch sizes, the interval of the architecture's steps, and ``derive.budget``.

    The budget is checked for methods that derive from the data alone, or only from scores of their candidates: they
    derive here from equal scores. What the others can reach is known only after their search.

    Args:
        experiment: on encoded data; its parts are checked.
        params: all of params.yaml.

    Raises:
        ValueError: naming the parameter and a remedy.
    """
    method = experiment.method
    if method.trains:
        check_batch_size(experiment, "search", params.search, "train")
        steps = params.search.epochs * -(-experiment.data.labels["train"].rows // params.search.batch_size)
        if experiment.architecture.level == "bilevel" and experiment.architecture.every > steps:
            raise ValueError(
                f"params.yaml: search.architecture.every must be at most {steps:,}, the steps of the search, got "
                f"{experiment.architecture.every:,}; lower it, or train for more epochs"
            )
    check_batch_size(experiment, "retrain", params.retrain, "train", "arch")
    if params.derive.budget is None:
        return
    found = nothing_found(experiment)
    if method.finds:
        supernet = method.find(problem(experiment)) if method.trains else None
        if not isinstance(supernet, FieldEmbedding):
            return
        findings = supernet.findings()
        if findings.scores is None or findings.arrays():
            return
        found = replace(found, scores=tuple((0.0,) * len(dims) for dims in found.candidates))
    try:
        derive(method, evidence(found, experiment.schema, params.derive.budget))
    except ValueError as error:
        raise ValueError(f"params.yaml: derive.budget is {params.derive.budget}: {error}") from error
