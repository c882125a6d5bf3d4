"""The search: a method finds what it needs for its derivation, in most cases by training a supernet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.evidence import Problem, Trial
from pipeline.data.batches import Batches
from pipeline.embeddings.contract import FieldEmbedding
from pipeline.embeddings.cost import full_tables, prices, spent, training_bytes
from pipeline.experiment.experiment import Experiment
from pipeline.experiment.found import Found
from pipeline.experiment.method import build
from pipeline.experiment.train import train
from pipeline.training import ranks
from pipeline.training.loop import fit
from pipeline.training.search import LitSearch, margins
from pipeline.training.weights import Record, nowhere
from pipeline.workflow.outputs import read_json, write_json


def problem(experiment: Experiment, share: float = 1.0) -> Problem:
    """The problem that the experiment's method solves.

    Args:
        experiment: defines it.
        share: 1/k to use every k-th training row.
    """

    def training_ids() -> np.ndarray:
        training = experiment.training_rows(share)
        rows = training.slice(0, len(training))[0]
        return rows if training.interactions is None else training.interactions.ids_of(rows, experiment.schema)

    method, schema, dim = experiment.method, experiment.schema, experiment.dim
    return Problem(
        method=method.name,
        schema=schema,
        dim=dim,
        candidates=experiment.candidates,
        prices=prices(method.plain, schema, experiment.candidates, dim),
        full_bytes=full_tables(schema, dim).bytes,
        seed=experiment.params.search.seed,
        training_ids=training_ids,
    )


def nothing_found(experiment: Experiment) -> Found:
    """The findings of a method that has nothing to find: its name and the candidates."""
    names, seed = experiment.schema.names, experiment.params.search.seed
    return Found(experiment.method.name, seed, experiment.dim, names, experiment.candidates)


def check(experiment: Experiment) -> None:
    """Check everything that a search needs, up to building the supernet. Some methods count the training rows there.

    Raises:
        ValueError: naming a wrong parameter.
    """
    experiment.check()
    if experiment.method.trains:
        experiment.method.find(problem(experiment))


def find(experiment: Experiment, work: Path, record: Record = nowhere, share: float = 1.0) -> Found:
    """Run the search of the experiment's method, or resume it from ``work``.

    Args:
        experiment: to search.
        work: folder of checkpoints; the caller removes it after saving the result.
        record: receives (step, names, values).
        share: 1/k to use every k-th row of ``train`` and ``arch``.

    Raises:
        ValueError: naming a wrong parameter.
    """
    experiment.check()
    if not experiment.method.finds:
        return nothing_found(experiment)
    question = problem(experiment, share)
    torch.manual_seed(question.seed)
    finding = experiment.method.find(question)
    base = vars(nothing_found(experiment))
    if isinstance(finding, FieldEmbedding):
        return _searched(experiment, finding, question, base, work / "search.ckpt", record, share)
    if isinstance(finding, dict):
        return Found(**base | {"arrays": finding})
    return Found(**base | {"trials": _trained(experiment, finding, work, record, share)})


def prepare(experiment: Experiment, share: float = 1.0) -> tuple[LitSearch, Batches]:
    """A fresh supernet, ready for `pipeline.training.loop.fit`, and its batches.

    Raises:
        ValueError: if the method trains no supernet.
    """
    question = problem(experiment, share)
    torch.manual_seed(question.seed)
    embedding = experiment.method.find(question)
    if not isinstance(embedding, FieldEmbedding):
        raise ValueError(f"method {experiment.method.name} trains no supernet")
    return _prepared(experiment, embedding, question, share)


def _prepared(
    experiment: Experiment, embedding: FieldEmbedding, question: Problem, share: float
) -> tuple[LitSearch, Batches]:
    settings, task, data = experiment.params.search, experiment.task, experiment.data
    training, arch = (data.split(part).thinned(share) for part in ("train", "arch"))
    model = experiment.model(embedding, experiment.schema, training)
    batches = task.batches(training, settings.batch_size, settings.seed)
    module = LitSearch(
        model,
        task,
        data.split("val"),
        settings.epochs * len(batches),
        task.batches(arch, settings.batch_size, settings.seed + 1),
        experiment.architecture,
        experiment.schema.names,
        question.candidates,
        question.prices,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        lr_key="search.lr",
        cuda_graph=settings.cuda_graph,
        precision=settings.precision,
    )
    return module, batches


def _searched(
    experiment: Experiment,
    embedding: FieldEmbedding,
    question: Problem,
    base: Mapping[str, Any],
    checkpoint: Path,
    record: Record,
    share: float,
) -> Found:
    """Train a supernet to the end, from ``checkpoint`` if there is one, and return its findings."""
    settings = experiment.params.search
    module, batches = _prepared(experiment, embedding, question, share)
    module.record = record
    fit(module, batches, settings.epochs, "search", checkpoint, settings.checkpoint_seconds)
    if module.best:
        module.model.load_state_dict(module.best)
    module.model.eval()
    embedding.conclude(module.judge(experiment.training_rows(share)))
    findings = embedding.findings()
    results = {
        "arrays": findings.arrays(),
        "validation": module.history,
        "steps": module.steps,
        "planned_steps": module.planned,
        "training_bytes": training_bytes(embedding),
        "trajectory": module.trajectory,
    }
    if findings.scores is not None:
        scores = findings.scores.detach().cpu()
        leads = margins(scores.exp()).tolist()
        least = experiment.architecture.margin
        results["undecided"] = tuple(
            name for name, lead in zip(experiment.schema.names, leads, strict=True) if lead < least
        )
        pairs = zip(scores, question.candidates, strict=True)
        results["scores"] = tuple(tuple(row[: len(dims)].tolist()) for row, dims in pairs)
    return Found(**{**base, **results})


def _trained(
    experiment: Experiment, proposals: Sequence[Allocation], work: Path, record: Record, share: float
) -> tuple[Trial, ...]:
    """Train every proposal as a retraining does, except those with a result in ``work``."""
    settings = experiment.params.search
    names = (f"proposal/val/{experiment.task.objective}", "proposal/bytes")
    trials = []
    for i, allocation in enumerate(proposals):
        result, checkpoint = work / f"proposal-{i}.json", work / f"proposal-{i}.ckpt"
        if not result.exists():
            title = f"proposal {i + 1} of {len(proposals)}"
            trained = train(
                experiment, allocation, settings.seed, checkpoint, settings=settings, share=share, title=title
            )
            quality = trained.validation[experiment.task.objective]
            if ranks.first():
                write_json(result, {"quality": quality, "allocation": allocation.to_dict()})
                checkpoint.unlink(missing_ok=True)
            ranks.wait_for_all()
        size = spent(build, experiment.schema, experiment.dim, allocation).bytes
        trials.append(Trial(allocation, float(read_json(result)["quality"]), size))
        record(i, names, (trials[-1].quality, size))
    return tuple(trials)
