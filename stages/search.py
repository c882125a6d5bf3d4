"""Stage 3: what a method has to find out before it can decide; usually, a supernet is trained.

Reads the parts ``train``, ``arch`` and ``val``; writes ``artifacts/search/scores.json``,
``artifacts/trajectory.parquet`` (every recorded step) and ``artifacts/trajectory.csv`` (thinned, for DVC's plots).
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.data.schema import Schema
from pipeline.workflow.plug import check_options
from stages import _model, _stage, retrain
from stages._stage import ENCODED, SCORES

if TYPE_CHECKING:
    import numpy as np

    from pipeline.data.batches import Batches
    from pipeline.embeddings.contract import FieldEmbedding
    from pipeline.training.search import LitSearch
    from pipeline.training.weights import Record

PLOTTED_STEPS = 100


@dataclass(frozen=True)
class Found:
    """What a search came to.

    Args:
        record: the contents of ``scores.json``.
        trajectory: (step, tau, probabilities (F, N)) of all recorded steps; empty where no candidates are scored.
    """

    record: dict[str, Any]
    trajectory: list[tuple[int, float, Any]] = field(default_factory=list)


def find(
    params: Mapping[str, Any], schema: Schema, work: Path, record: Record, encoded: Path = ENCODED, share: float = 1.0
) -> Found:
    """Let the method find what it derives from, going on from what ``work`` holds of it.

    A method offers one of three functions, or none:

    * ``search(schema, dim, candidates, prices, **options)``: an embedding to be trained, the weights on ``train`` and
      the architecture on ``arch``;
    * ``propose(schema, dim, candidates, prices, rng, **options)``: allocations, each of which is trained on ``train``
      and ``arch``, as a retraining is, and judged on ``val``;
    * ``observe(schema, ids, rng, **options)``: arrays that are read off the ids (n, S) of ``train`` and ``arch``.

    Args:
        work: folder of checkpoints.
        encoded: folder of the encoded data.
        share: of the rows of ``train`` and ``arch``, 1/k: every k-th is taken.

    Raises:
        ValueError: if the method, its options or the candidates are not as they should be.
    """
    import numpy as np

    from pipeline.allocation.arrays import encoded as in_json

    method = _model.method(params)
    settings = params["search"]
    chosen = candidates(params, schema)
    about: dict[str, Any] = {
        "method": params["method"]["name"],
        "seed": settings["seed"],
        "dim": params["dim"],
        "features": {name: {"candidates": row} for name, row in zip(schema.names, chosen, strict=True)},
        "undecided": [],
        "validation": [],
    }
    rng = np.random.default_rng(settings["seed"])
    if method.finds is None:
        return Found(about)
    if method.finds.__name__ == "observe":
        rows = _training(encoded, share)[0]
        arrays = method.finds(schema, rows.slice(0, len(rows))[0], rng, **method.find_options)
        return Found(about | {"found": in_json(arrays)})
    if method.finds.__name__ == "propose":
        return Found(about | {"trials": _trials(params, schema, chosen, rng, work, record, encoded, share)})
    return _supernet_trained(params, schema, about, work / "search.ckpt", record, encoded, share)


def candidates(params: Mapping[str, Any], schema: Schema) -> list[list[int]]:
    """Candidate dims of each field: the method's own where it has such, else those that params.yaml names."""
    own = getattr(_model.method(params).module, "candidates", None)
    if own is not None:
        offered: list[list[int]] = own(schema, params["dim"])
        return offered
    return _model.candidates(params["search"]["candidates"], params["candidates"], schema, params["dim"])


def supernet(params: Mapping[str, Any], schema: Schema) -> tuple[FieldEmbedding, list[list[int]], np.ndarray]:
    """The embedding that the parameters ask for, its candidates (F lists) and their prices (F, N).

    Raises:
        ValueError: if the method, its options or the candidates are not as they should be.
    """
    from pipeline.embeddings.cost import prices

    method = _model.method(params)
    _model.backbone(params)
    steps(params)
    chosen = candidates(params, schema)
    priced = prices(method.module.build, schema, chosen, params["dim"])
    assert method.finds is not None
    return method.finds(schema, params["dim"], chosen, priced, **method.find_options), chosen, priced


def check(params: Mapping[str, Any], schema: Schema) -> None:
    """Refuse parameters that no search could begin with."""
    method = _model.method(params)
    if method.finds is not None and method.finds.__name__ == "search":
        supernet(params, schema)
    else:
        candidates(params, schema)


def steps(params: Mapping[str, Any]) -> Any:
    """How the architecture is trained; what a method's ``ARCHITECTURE`` says comes before params.yaml."""
    from pipeline.training.search import Steps

    given = params["search"]["architecture"]
    check_options(Steps, given, "search.architecture in params.yaml")
    return Steps(**{**given, **getattr(_model.method(params).module, "ARCHITECTURE", {})})


def _training(encoded: Path, share: float) -> tuple[Any, Any]:
    """The rows that a retraining has, thinned, and those that judge it."""
    training, validation = retrain.parts(encoded)
    return training.thinned(share), validation


def _trials(
    params: Mapping[str, Any],
    schema: Schema,
    chosen: list[list[int]],
    rng: np.random.Generator,
    work: Path,
    record: Record,
    encoded: Path,
    share: float,
) -> list[dict[str, Any]]:
    """Every proposed allocation with its AUC on ``val`` and its bytes; what ``work`` holds is not trained again."""
    from pipeline.embeddings.cost import prices, spent
    from pipeline.training.loop import fit

    method, settings, dim = _model.method(params), params["search"], params["dim"]
    assert method.finds is not None
    priced = prices(method.module.build, schema, chosen, dim)
    proposals = method.finds(schema, dim, chosen, priced, rng, **method.find_options)
    training, validation = _training(encoded, share)
    as_retraining = {**params, "retrain": {**settings, "patience": None}}
    trials = []
    for i, allocation in enumerate(proposals):
        done = work / f"proposal-{i}.json"
        if not done.exists():
            module, batches = retrain.prepare(as_retraining, schema, allocation, settings["seed"], training, validation)
            checkpoint = work / f"proposal-{i}.ckpt"
            title = f"proposal {i + 1} of {len(proposals)}"
            fit(module, batches, settings["epochs"], title, checkpoint, settings["checkpoint_seconds"])
            best = max(entry["auc"] for entry in module.history)
            size = spent(method.module.build, schema, dim, allocation).bytes
            with _stage.whole(done) as file:
                file.write_text(json.dumps({"allocation": allocation.to_dict(), "auc": best, "bytes": size}))
            checkpoint.unlink(missing_ok=True)
        trials.append(_stage.read(done))
        record(i, ("proposal/val/auc", "proposal/bytes"), (trials[-1]["auc"], trials[-1]["bytes"]))
    return trials


def prepare(
    params: Mapping[str, Any], schema: Schema, encoded: Path = ENCODED, share: float = 1.0
) -> tuple[LitSearch, Batches]:
    """A fresh supernet, ready for `pipeline.lit.fit`, and its batches; see `find`."""
    import torch

    from pipeline.data.batches import Batches
    from pipeline.data.split import Split
    from pipeline.models.model import CTRModel
    from pipeline.training.search import LitSearch

    settings = params["search"]
    torch.manual_seed(settings["seed"])
    embedding, chosen, priced = supernet(params, schema)
    model = CTRModel(schema, embedding, _model.backbone(params), params["backbone"]["options"])
    training, arch = (Split.load(encoded, part).thinned(share) for part in ("train", "arch"))
    batches = Batches(training, settings["batch_size"], seed=settings["seed"])
    module = LitSearch(
        model,
        Split.load(encoded, "val"),
        settings["epochs"] * len(batches),
        Batches(arch, settings["batch_size"], seed=settings["seed"] + 1),
        steps(params),
        schema.names,
        chosen,
        priced,
        lr=settings["lr"],
        weight_decay=settings["weight_decay"],
    )
    return module, batches


def _supernet_trained(
    params: Mapping[str, Any],
    schema: Schema,
    about: dict[str, Any],
    checkpoint: Path,
    record: Record,
    encoded: Path,
    share: float,
) -> Found:
    """A fresh supernet, trained to the end, from ``checkpoint`` if there is one."""
    from pipeline.allocation.arrays import encoded as in_json
    from pipeline.embeddings.cost import training_bytes
    from pipeline.training.loop import fit
    from pipeline.training.search import margins

    settings = params["search"]
    module, batches = prepare(params, schema, encoded, share)
    module.record = record
    fit(module, batches, settings["epochs"], "search", checkpoint, settings["checkpoint_seconds"])
    embedding = module.model.embedding
    module.model.eval()
    embedding.conclude(module.passes)
    about |= {
        "steps": module.steps,
        "planned_steps": module.planned,
        "validation": module.history,
        "training_bytes": training_bytes(embedding),
    }
    arrays = embedding.found()
    if arrays:
        about["found"] = in_json(arrays)
    scores = embedding.scores()
    if scores is not None:
        scores = scores.detach().cpu()
        leads = margins(scores.exp()).tolist()
        least = module.architecture.margin
        about["undecided"] = [name for name, lead in zip(schema.names, leads, strict=True) if lead < least]
        for f, feature in enumerate(about["features"].values()):
            feature["log_probability"] = scores[f, : len(feature["candidates"])].tolist()
    return Found(about, module.trajectory)


def run() -> None:
    started = time.monotonic()
    _model.tune()
    import pandas as pd

    params = _stage.params("search")
    schema = Schema.load(ENCODED / "schema.json")
    _model.backbone(params)
    candidates(params, schema)
    steps(params)
    key = _stage.fingerprint("search", [ENCODED / "schema.json"])
    work = _stage.root() / ".pipeline/ckpt/search" / key
    with _stage.tracker("search", key) as tracker:
        tracked = tracker.run(seed=params["search"]["seed"], params=params)
        found = find(params, schema, work, tracked.metrics)
        record, points = found.record, found.trajectory
        with _stage.whole(SCORES.parent) as folder:
            folder.mkdir()
            (folder / SCORES.name).write_text(json.dumps(record, indent=1) + "\n")
        table = _trajectory(points, schema, [feature["candidates"] for feature in record["features"].values()])
        with _stage.whole("artifacts/trajectory.parquet") as file:
            pd.DataFrame(table).to_parquet(file, index=False)
        every = max(1, len(points) // PLOTTED_STEPS)
        shown = {step for step, _, _ in points[::-every]}  # from the end, which counts most
        thin = pd.DataFrame(table).rename(columns={"candidate_dim": "dimension"})
        thin = thin[thin.step.isin(shown)]
        with _stage.whole("artifacts/trajectory.csv") as file:
            thin[["step", "feature", "dimension", "probability"]].round(4).to_csv(file, index=False)
        shutil.rmtree(work, ignore_errors=True)
        tracked.artifact("artifacts/trajectory.parquet")
        undecided = record["undecided"]
        tracked.tag("undecided", ", ".join(undecided) or "none")
        if undecided:
            print(
                "search: warning: undecided, the first candidate leads the second by less than "
                f"{steps(params).margin}: {', '.join(undecided)}; train longer, or raise search.architecture.lr"
            )
        print(f"search: {_summary(record)}, {time.monotonic() - started:.1f} s")


def _summary(record: Mapping[str, Any]) -> str:
    if "trials" in record:
        best = max(trial["auc"] for trial in record["trials"])
        return f"{len(record['trials'])} proposals trained, best val AUC {best:.4f}"
    if record["validation"]:
        done, auc = f"{record['steps']:,} of {record['planned_steps']:,} steps", record["validation"][-1]["auc"]
        return f"{done}, supernet's val AUC {auc:.4f}"
    return f"{record['method']} has nothing to train"


def _trajectory(
    points: Sequence[tuple[int, float, Any]], schema: Schema, chosen: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """Long form: one row for every step, feature and candidate."""
    import numpy as np

    wanted = [(f, n) for f, row in enumerate(chosen) for n in range(len(row))]
    fields, numbers = np.array([f for f, _ in wanted]), np.array([n for _, n in wanted])
    return {
        "step": np.repeat(np.array([step for step, _, _ in points], dtype=np.int64), len(wanted)),
        "feature": np.tile(np.array(schema.names, dtype=object)[fields], len(points)),
        "candidate_dim": np.tile([chosen[f][n] for f, n in wanted], len(points)),
        "probability": np.concatenate([p.numpy()[fields, numbers] for _, _, p in points]) if points else np.empty(0),
        "tau": np.repeat(np.array([tau for _, tau, _ in points]), len(wanted)),
    }


if __name__ == "__main__":
    _stage.main(run)
