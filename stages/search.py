"""Stage 3: train the supernet; writes the scores of all candidates and their trajectory.

Reads the parts ``train``, ``arch`` and ``val``; writes ``artifacts/search/scores.json``,
``artifacts/trajectory.parquet`` (every recorded step) and ``artifacts/trajectory.csv`` (thinned, for DVC's plots).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.plug import check_options, names, plug
from pipeline.schema import Schema
from stages import _model, _stage
from stages._stage import ENCODED, SCORES

if TYPE_CHECKING:
    import numpy as np

    from pipeline.data import Batches
    from pipeline.embeddings import FieldEmbedding
    from pipeline.lit import LitSearch, Record

PLOTTED_STEPS = 100


@dataclass(frozen=True, eq=False)
class Search:
    """A supernet that is ready to be trained, with all that its results are named by."""

    module: LitSearch
    batches: Batches
    schema: Schema
    candidates: list[list[int]]
    params: Mapping[str, Any]

    def train(self, checkpoint: Path, record: Record) -> dict[str, Any]:
        """Train to the end, from ``checkpoint`` if there is one; what ``scores.json`` holds."""
        from pipeline.lit import fit, margins

        module, settings = self.module, self.params["search"]
        module.record = record
        fit(module, self.batches, settings["epochs"], "search", checkpoint, settings["checkpoint_seconds"])
        scores = module.model.embedding.scores()
        assert scores is not None
        scores = scores.detach().cpu()
        leads = margins(scores.exp())
        return {
            "method": self.params["method"]["name"],
            "seed": settings["seed"],
            "dim": self.params["dim"],
            "features": {
                name: {"candidates": row, "log_probability": scores[f, : len(row)].tolist()}
                for f, (name, row) in enumerate(zip(self.schema.names, self.candidates, strict=True))
            },
            "undecided": [
                name for name, lead in zip(self.schema.names, leads, strict=True) if lead < module.architecture.margin
            ],
            "steps": module.steps,
            "planned_steps": module.planned,
            "validation": module.history,
        }


def supernet(params: Mapping[str, Any], schema: Schema) -> tuple[FieldEmbedding, list[list[int]], np.ndarray]:
    """The embedding that the parameters ask for, its candidates (F lists) and their prices (F, N).

    Raises:
        ValueError: if the method, its options or the candidates are not as they should be.
    """
    from pipeline.budget import prices
    from pipeline.lit import Steps

    method = plug("methods", params["method"]["name"])
    if method.search is None:
        searched = [name for name in names("methods") if plug("methods", name).search is not None]
        raise ValueError(
            f"method.name in params.yaml: {params['method']['name']!r} has nothing to search; there are {searched}"
        )
    _model.backbone(params)
    options = params["method"]["options"]
    check_options(method.search, options, "method.options in params.yaml")
    check_options(Steps, params["search"]["architecture"], "search.architecture in params.yaml")
    Steps(**params["search"]["architecture"])
    chosen = _model.candidates(params["search"]["candidates"], params["candidates"], schema, params["dim"])
    priced = prices(method.build, schema, chosen, params["dim"])
    return method.search(schema, params["dim"], chosen, priced, **options), chosen, priced


def prepare(params: Mapping[str, Any], schema: Schema, encoded: Path = ENCODED, share: float = 1.0) -> Search:
    """A fresh supernet on the parts ``train``, ``arch`` and ``val``; see `supernet` for errors.

    Args:
        encoded: folder of the encoded data.
        share: of the rows of ``train`` and ``arch``, 1/k: every k-th is taken.
    """
    import torch

    from pipeline.data import Batches, Split
    from pipeline.lit import LitSearch, Steps
    from pipeline.model import CTRModel

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
        Steps(**settings["architecture"]),
        schema.names,
        chosen,
        priced,
        lr=settings["lr"],
        weight_decay=settings["weight_decay"],
    )
    return Search(module, batches, schema, chosen, params)


def run() -> None:
    started = time.monotonic()
    _model.tune()
    import pandas as pd

    params = _stage.params("search")
    schema = Schema.load(ENCODED / "schema.json")
    search = prepare(params, schema)
    module = search.module
    key = _stage.fingerprint("search", [ENCODED / "schema.json"])
    checkpoint = _stage.root() / ".pipeline/ckpt/search" / key / "last.ckpt"
    with _stage.tracker("search", key) as tracker:
        tracked = tracker.run(seed=params["search"]["seed"], params=params)
        record = search.train(checkpoint, tracked.metrics)
        with _stage.whole(SCORES.parent) as folder:
            folder.mkdir()
            (folder / SCORES.name).write_text(json.dumps(record, indent=1) + "\n")
        table = _trajectory(module.trajectory, schema, search.candidates)
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
        undecided = record["undecided"]
        tracked.tag("undecided", ", ".join(undecided) or "none")
        if undecided:
            print(
                "search: warning: undecided, the first candidate leads the second by less than "
                f"{module.architecture.margin}: {', '.join(undecided)}; train longer, or raise search.architecture.lr"
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
