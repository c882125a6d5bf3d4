"""Stage 3: train the supernet; writes the scores of all candidates and their trajectory.

Reads the parts ``train``, ``arch`` and ``val``; writes ``artifacts/search/scores.json``,
``artifacts/trajectory.parquet`` (every recorded step) and ``artifacts/trajectory.csv`` (thinned, for DVC's plots).
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from pipeline.plug import check_options, names, plug
from pipeline.schema import Schema
from stages import _model, _stage
from stages._stage import ENCODED, SCORES

PLOTTED_STEPS = 100


def run() -> None:
    started = time.monotonic()
    _model.tune()
    import pandas as pd
    import torch

    from pipeline.budget import prices
    from pipeline.data import Batches, Split
    from pipeline.lit import LitSearch, Steps, fit, margins
    from pipeline.model import CTRModel

    params = _stage.params("search")
    settings, dim = params["search"], params["dim"]
    schema = Schema.load(ENCODED / "schema.json")
    method = plug("methods", params["method"]["name"])
    if method.search is None:
        searched = [name for name in names("methods") if plug("methods", name).search is not None]
        raise ValueError(
            f"method.name in params.yaml: {params['method']['name']!r} has nothing to search; there are {searched}"
        )
    backbone = _model.backbone(params)
    options = params["method"]["options"]
    check_options(method.search, options, "method.options in params.yaml")
    check_options(Steps, settings["architecture"], "search.architecture in params.yaml")
    architecture = Steps(**settings["architecture"])
    chosen = _model.candidates(settings["candidates"], params["candidates"], schema, dim)
    priced = prices(method.build, schema, chosen, dim)

    torch.manual_seed(settings["seed"])
    embedding = method.search(schema, dim, chosen, priced, **options)
    model = CTRModel(schema, embedding, backbone, params["backbone"]["options"])
    batches = Batches(Split.load(ENCODED, "train"), settings["batch_size"], seed=settings["seed"])
    module = LitSearch(
        model,
        Split.load(ENCODED, "val"),
        settings["epochs"] * len(batches),
        Batches(Split.load(ENCODED, "arch"), settings["batch_size"], seed=settings["seed"] + 1),
        architecture,
        schema.names,
        chosen,
        priced,
        lr=settings["lr"],
        weight_decay=settings["weight_decay"],
    )
    key = _stage.fingerprint("search", [ENCODED / "schema.json"])
    checkpoint = _stage.root() / ".pipeline/ckpt/search" / key / "last.ckpt"
    with _stage.tracker("search", key) as tracker:
        tracked = tracker.run(seed=settings["seed"], params=params)
        module.record = tracked.metrics
        fit(module, batches, settings["epochs"], "search", checkpoint, settings["checkpoint_seconds"])

        scores = embedding.scores().detach().cpu()
        p = scores.exp()
        undecided = [name for name, lead in zip(schema.names, margins(p), strict=True) if lead < architecture.margin]
        record = {
            "method": params["method"]["name"],
            "seed": settings["seed"],
            "dim": dim,
            "features": {
                name: {
                    "candidates": chosen[f],
                    "log_probability": scores[f, : len(chosen[f])].tolist(),
                }
                for f, name in enumerate(schema.names)
            },
            "undecided": undecided,
            "steps": module.steps,
            "planned_steps": module.planned,
            "validation": module.history,
        }
        with _stage.whole(SCORES.parent) as folder:
            folder.mkdir()
            (folder / SCORES.name).write_text(json.dumps(record, indent=1) + "\n")
        table = _trajectory(module.trajectory, schema, chosen)
        with _stage.whole("artifacts/trajectory.parquet") as file:
            pd.DataFrame(table).to_parquet(file, index=False)
        every = max(1, len(module.trajectory) // PLOTTED_STEPS)
        shown = {step for step, _, _ in module.trajectory[::-every]}  # from the end, which counts most
        thin = pd.DataFrame(table).rename(columns={"candidate_dim": "dimension"})
        thin = thin[thin.step.isin(shown)]
        with _stage.whole("artifacts/trajectory.csv") as file:
            thin[["step", "feature", "dimension", "probability"]].round(4).to_csv(file, index=False)
        checkpoint.unlink(missing_ok=True)
        tracked.artifact("artifacts/trajectory.parquet")
        tracked.tag("undecided", ", ".join(undecided) or "none")
        if undecided:
            print(
                f"search: warning: undecided, the first candidate leads the second by less than {architecture.margin}: "
                f"{', '.join(undecided)}; train longer, or raise search.architecture.lr"
            )
        last = module.history[-1]
        print(
            f"search: {module.steps:,} of {module.planned:,} steps, supernet's val AUC {last['auc']:.4f}, "
            f"{time.monotonic() - started:.1f} s"
        )


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
