"""Retrieval from encoded interactions to a saved model."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.allocation.allocation import Allocation
from pipeline.data.drawn import DrawnBatches
from pipeline.data.encoded import Encoded
from pipeline.experiment.experiment import Experiment, suitable
from pipeline.experiment.measure import model_bytes
from pipeline.experiment.saved import load, read, save
from pipeline.experiment.train import prepare, train
from pipeline.tasks import retrieval
from pipeline.training.weights import Diverged
from tests.experiment.small import write_rows
from tests.interactions import changed, write_interactions
from tests.training.clicks import Fatal, Killed

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]
OPTIONS: dict[str, dict[str, Any]] = {"two_tower": {"ids": "both", "hidden": [16], "width": 8}}
BLOCKS = 10


@pytest.fixture(scope="session")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 users and 200 items in blocks, without histories."""
    return write_interactions(tmp_path_factory.mktemp("blocks"), 300, 200, BLOCKS, history=0, each=12)


@pytest.fixture(scope="session")
def histories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_interactions(tmp_path_factory.mktemp("histories"), 60, 40, history=3)


def folder_of(name: str, blocks: Path, histories: Path) -> Path:
    return histories if name == "two_tower" else blocks


def full(here: Experiment) -> Allocation:
    return Allocation("autodim", dict.fromkeys(here.schema.names, here.dim))


def of(name: str, folder: Path, **changes: Any) -> Experiment:
    return changed(folder, name, OPTIONS.get(name), **changes)


@pytest.mark.parametrize("name", [name for name in suitable(interactions=True) if name != "two_tower"])
def test_a_backbone_learns_the_blocks_that_popularity_cannot_know(name: str, blocks: Path, tmp_path: Path) -> None:
    here = of(name, blocks, retrain={"epochs": 4, "lr": 0.03, "batch_size": 500}, task={"options": {"negatives": 64}})
    trained = train(here, full(here), 0, tmp_path / "last.ckpt", title=None)
    val = here.data.split("val")
    counts = here.data.interactions.counts
    popular = np.argsort(-counts, kind="stable")[:100].astype(np.int32)
    seen = here.data.interactions.pairs("train", "arch")
    users = np.unique(val.ids[0][:, 1])
    ranked = np.full((len(users), 100), -1, np.int32)
    for place, user in enumerate(users):
        own = [item for item in popular if item not in seen.of_users(np.array([user]))[1]]
        ranked[place, : len(own)] = own
    baseline = retrieval.measure(ranked, val)["recall_20"]
    assert trained.validation["recall_20"] > 2 * baseline


@pytest.mark.parametrize("name", suitable(interactions=True))
def test_a_killed_training_ends_with_the_numbers_of_one_that_was_not(
    name: str, blocks: Path, histories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(name, blocks, histories)
    rows = len(np.load(folder / "train/ids.npy"))
    here = of(name, folder, retrain={"epochs": 2, "batch_size": rows // 6, "checkpoint_seconds": 0})
    whole = train(here, full(here), 0, tmp_path / "whole.ckpt", title=None)
    draws = retrieval.DrawnBatches

    class Broken(Fatal, draws):  # type: ignore[misc, valid-type]
        steps = whole.history[0]["step"] + 3

    monkeypatch.setattr(retrieval, "DrawnBatches", Broken)
    with pytest.raises(Killed):
        train(here, full(here), 0, tmp_path / "last.ckpt", title=None)
    monkeypatch.setattr(retrieval, "DrawnBatches", DrawnBatches)
    resumed = train(here, full(here), 0, tmp_path / "last.ckpt", title=None)
    assert resumed.history == whole.history and resumed.validation == whole.validation
    state = resumed.model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in whole.model.state_dict().items())


@pytest.mark.parametrize("name", suitable(interactions=True))
def test_a_saved_model_is_loaded_with_equal_predictions(
    name: str, blocks: Path, histories: Path, tmp_path: Path
) -> None:
    here = of(name, folder_of(name, blocks, histories), retrain={"epochs": 1})
    trained = train(here, full(here), 0, tmp_path / "last.ckpt", title=None)
    save(tmp_path / "model", here, trained.model, full(here), trained.history)
    loaded, allocation = load(tmp_path / "model", here)
    val = here.data.split("val")
    assert allocation == full(here)
    assert np.array_equal(here.task.predict(loaded, val), here.task.predict(trained.model, val))
    with pytest.raises(ValueError, match="has no encoding/, which `retrain` writes"):
        read(tmp_path / "model")


def test_a_model_of_another_backbone_or_of_other_options_is_refused(blocks: Path, tmp_path: Path) -> None:
    here = of("mf", blocks, retrain={"epochs": 1})
    trained = train(here, full(here), 0, tmp_path / "last.ckpt", title=None)
    save(tmp_path / "model", here, trained.model, full(here), trained.history)
    for other in (of("lightgcn", blocks), of("gtn", blocks)):
        with pytest.raises(ValueError, match="is of a model with another backbone than that of this experiment"):
            load(tmp_path / "model", other)
    with pytest.raises(ValueError, match="is of a model with another task"):
        load(tmp_path / "model", of("mf", blocks, task={"options": {"score": "dot"}}))


@pytest.mark.parametrize("name", ["mf", "lightgcn"])
@pytest.mark.parametrize("role", ["user", "item"])
def test_a_model_that_would_have_no_users_or_no_items_is_refused(name: str, role: str, blocks: Path) -> None:
    here = of(name, blocks)
    dims = {field: 0 if field == role else here.dim for field in here.schema.names}
    with pytest.raises(ValueError, match=f"backbone {name} needs a field of role '{role}', and none is left"):
        here.allocated(Allocation("autodim", dims), here.training_rows())


def test_each_task_refuses_the_data_of_the_other_with_a_remedy(blocks: Path, tmp_path: Path) -> None:
    labelled = write_rows(tmp_path / "labelled")
    with pytest.raises(ValueError, match=r"has labels, and task retrieval needs interactions .* set task\.name to ctr"):
        changed(labelled, "mf").check()
    with pytest.raises(
        ValueError, match=r"interactions of users and items without labels.* set task\.name to retrieval"
    ):
        changed(blocks, "mf", task={"name": "ctr", "options": {}}).check()


def test_each_backbone_refuses_the_rows_of_the_other_kind_and_names_those_that_fit(
    blocks: Path, tmp_path: Path
) -> None:
    labelled = write_rows(tmp_path / "labelled")
    with pytest.raises(
        ValueError, match=r"data are interactions, and fm is for rows with labels; there are .*lightgcn"
    ):
        _ = changed(blocks, "fm").backbone
    with pytest.raises(ValueError, match=r"data are rows with labels, and gtn is for interactions; there are .*deepfm"):
        _ = changed(labelled, "gtn").backbone


def test_a_broken_folder_of_interactions_is_refused_by_file(blocks: Path, tmp_path: Path) -> None:
    def broken(file: str, change: Any) -> Encoded:
        folder = shutil.copytree(blocks, tmp_path / file.replace("/", "_") / str(len(list(tmp_path.iterdir()))))
        array = np.load(folder / file)
        np.save(folder / file, change(array))
        return Encoded.load(folder)

    def with_item(ids: np.ndarray) -> np.ndarray:
        ids[3, 2] = 200
        return ids

    for file, change, message in (
        ("users.npy", lambda a: a[:, :1], r"users.npy.*must be of shape \(number, 2\)"),
        ("items.npy", lambda a: a + 10**6, "items.npy.*has ids of field 'item'"),
        ("counts.npy", lambda a: a[1:], "counts.npy.*must have one count for each of 200 items"),
        ("train/ids.npy", lambda a: a[:, :3], "ids.npy.*must have 4 columns"),
        ("train/ids.npy", with_item, "ids.npy.*has numbers of users or items"),
    ):
        with pytest.raises(ValueError, match=message):
            broken(file, change).split("train")


def test_scores_that_are_not_finite_end_a_training(blocks: Path, tmp_path: Path) -> None:
    here = of("mf", blocks)
    module, _ = prepare(here, full(here), 0, here.params.retrain, None)
    with torch.no_grad():
        next(iter(module.model.embedding.parameters())).fill_(float("nan"))
    with pytest.raises(Diverged, match="a score on val is not finite"):
        module.on_train_epoch_end()


def test_the_bytes_of_a_graph_model_count_the_edges(blocks: Path) -> None:
    sizes = {}
    for name in ("mf", "lightgcn"):
        here = of(name, blocks)
        module, _ = prepare(here, full(here), 0, here.params.retrain, None)
        sizes[name] = model_bytes(module.model)
    edges = sum(here.data.labels[part].rows for part in ("train", "arch"))
    assert sizes["lightgcn"] == sizes["mf"] + 8 * edges


def test_two_towers_by_identity_alone_keep_it_when_content_is_ablated(histories: Path) -> None:
    here = changed(histories, "two_tower", {"ids": "only", "ablate_fields": 0.9, "dropout": 0.0})
    module, _ = prepare(here, full(here), 0, here.params.retrain, None)
    backbone = module.model.train().backbone
    torch.manual_seed(0)
    vectors = backbone.items(torch.randn(50, 1, here.dim))
    assert len(vectors.unique(dim=0)) == 50


def test_events_of_a_type_are_ablated_also_where_no_query_has_a_history(histories: Path) -> None:
    here = changed(histories, "two_tower", {"ablate_events": 0.9})
    module, batches = prepare(here, full(here), 0, here.params.retrain, None)
    rows = batches.take().ids
    rows[:, 4:] = -1
    queries, _ = module.model.train()(rows, torch.arange(3))
    assert queries.isfinite().all()
