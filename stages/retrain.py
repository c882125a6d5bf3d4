"""Stage 5: a fresh model for the allocation and for each control, alike in all but the dimensions, for all seeds.

Trains on ``train`` and ``arch``, stops early on ``val``; writes ``artifacts/models/<allocation>/seed-<seed>/``
with ``model.safetensors``, ``allocation.json`` and ``history.json``. A finished cell is not trained again when the
stage is started again after an interruption.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.data.schema import Schema
from pipeline.workflow.plug import plug
from stages import _model, _stage
from stages._stage import ENCODED, MODELS

if TYPE_CHECKING:
    from pipeline.allocation.allocation import Allocation
    from pipeline.data.batches import Batches
    from pipeline.data.split import Split
    from pipeline.training.weights import LitCTR


def prepare(
    params: Mapping[str, Any], schema: Schema, allocation: Allocation, seed: int, training: Split, validation: Split
) -> tuple[LitCTR, Batches]:
    """A fresh model of an allocation, ready for `pipeline.lit.fit`, and its batches."""
    import torch

    from pipeline.data.batches import Batches
    from pipeline.models.model import assemble
    from pipeline.training.weights import LitCTR

    settings = params["retrain"]
    torch.manual_seed(seed)
    build = plug("methods", allocation.method).build
    backbone = _model.backbone(params)
    model = assemble(schema, params["dim"], allocation, build, backbone, params["backbone"]["options"])
    batches = Batches(training, settings["batch_size"], seed=seed)
    module = LitCTR(
        model,
        validation,
        settings["epochs"] * len(batches),
        lr=settings["lr"],
        weight_decay=settings["weight_decay"],
        patience=settings["patience"],
    )
    return module, batches


def parts(encoded: Path = ENCODED) -> tuple[Split, Split]:
    """The rows to train on, and those that stop the training."""
    from pipeline.data.split import Split

    return Split.load(encoded, "train", "arch"), Split.load(encoded, "val")


def run() -> None:
    started = time.monotonic()
    _model.tune()
    from safetensors.torch import save_file

    from pipeline.allocation.allocation import Allocation
    from pipeline.training.loop import fit

    params = _stage.params("retrain")
    settings = params["retrain"]
    schema = Schema.load(ENCODED / "schema.json")
    _model.backbone(params)
    searched = Allocation.load("artifacts/allocation.json", schema)
    cells = [("searched", seed, searched) for seed in settings["seeds"]]
    controls = Path("artifacts/controls.json")
    for name, by_seed in _stage.read(controls).items():
        for seed in settings["seeds"]:
            if str(seed) not in by_seed:
                raise _stage.broken(controls, f"{name} has no seed {seed} of retrain.seeds in params.yaml")
            allocation = Allocation.from_dict(by_seed[str(seed)])
            allocation.check(schema)
            cells.append((name, seed, allocation))

    inputs: list[str | Path] = [ENCODED / "schema.json", "artifacts/allocation.json", "artifacts/controls.json"]
    work = _stage.root() / ".pipeline/ckpt/retrain" / _stage.fingerprint("retrain", inputs)
    training, validation = parts()
    with _stage.tracker("retrain", work.name) as tracker:
        for name, seed, allocation in cells:
            done = work / name / f"seed-{seed}"
            if done.exists():
                continue
            module, batches = prepare(params, schema, allocation, seed, training, validation)
            tracked = tracker.run(f"{name}/seed-{seed}", seed=seed, params=params, tags={"allocation": name})
            module.record = tracked.metrics
            checkpoint = work / name / f"seed-{seed}.ckpt"
            fit(module, batches, settings["epochs"], f"{name}, seed {seed}", checkpoint, settings["checkpoint_seconds"])
            module.model.load_state_dict(module.best)
            module.model.embedding.finish()
            state = module.model.state_dict()
            with _stage.whole(done) as folder:
                folder.mkdir()
                save_file({key: value.contiguous() for key, value in state.items()}, folder / "model.safetensors")
                allocation.save(folder / "allocation.json")
                (folder / "history.json").write_text(json.dumps(module.history, indent=1) + "\n")
            checkpoint.unlink(missing_ok=True)
            tracked.artifact(done / "allocation.json", output=MODELS / name / f"seed-{seed}" / "allocation.json")
            tracked.end()
            best = max(entry["auc"] for entry in module.history)
            print(f"retrain: {name}, seed {seed}: val AUC {best:.4f} in {len(module.history)} epochs", flush=True)
        with _stage.whole(MODELS) as folder:
            for name, seed, _ in cells:  # and no draft that a killed process left behind
                shutil.copytree(work / name / f"seed-{seed}", folder / name / f"seed-{seed}")
        shutil.rmtree(work)
        print(f"retrain: {len(cells)} models, {time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    _stage.main(run)
