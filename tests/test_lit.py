"""The training loops: a killed run goes on as if nothing had happened, and steps touch what they should."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.evidence import Evidence
from pipeline.backbones.deepfm import Backbone
from pipeline.data.batches import Batches
from pipeline.data.schema import Field, Schema
from pipeline.data.split import Split
from pipeline.embeddings.cost import prices
from pipeline.embeddings.table import Table
from pipeline.methods import autodim, full, robe
from pipeline.models.model import CTRModel, assemble
from pipeline.training.bilevel import frozen_statistics
from pipeline.training.loop import fit
from pipeline.training.search import LitSearch, Steps, margins
from pipeline.training.weights import LitCTR

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]
SCHEMA = Schema((Field("user", 30), Field("item", 20), Field("tags", 8, 3)))
CANDIDATES = [[1, 2, 4]] * 3
EPOCHS = 3


def rows(number: int, seed: int) -> Split:
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.integers(0, n, number) for n in (30, 20, 8, 8, 8)], 1).astype(np.int32)
    ids[rng.random(number) < 0.5, 4] = -1
    labels = (rng.random(number) < np.where(ids[:, 0] % 2, 0.8, 0.2)).astype(np.uint8)
    return Split((ids,), (labels,))


class Killed(Exception):
    pass


def search(folder: Path, die_at: int | None = None, candidates=CANDIDATES, recorded=None, **steps) -> LitSearch:
    """Search to the end, or until ``die_at`` weight steps, with a checkpoint after every step."""
    torch.manual_seed(0)
    priced = prices(autodim.build, SCHEMA, candidates, 4)
    embedding = autodim.search(
        SCHEMA, 4, candidates, priced, warm_up=0.2, temperature={"rate": 1.0, "floor": 0.1, "per": "run"}
    )
    batches = Batches(rows(500, 1), 50, seed=0)
    seen: list[int] = []

    def record(step, names, values) -> None:
        seen.append(step)
        if recorded is not None and len(names) > 2:
            recorded.append(dict(zip(names, values, strict=True)))
        if die_at is not None and step >= die_at:
            raise Killed

    module = LitSearch(
        CTRModel(SCHEMA, embedding, Backbone),
        rows(200, 2),
        EPOCHS * len(batches),
        Batches(rows(120, 3), 50, seed=1),
        Steps(lr=0.05, every=1, stable_steps=None, **steps),
        SCHEMA.names,
        candidates,
        priced,
        record=record,
    )
    if die_at is None:
        fit(module, batches, EPOCHS, "search", folder / "last.ckpt", seconds=0)
    else:
        with pytest.raises(Killed):
            fit(module, batches, EPOCHS, "search", folder / "last.ckpt", seconds=0)
    return module


@pytest.mark.parametrize("die_at", [7, 13, 24])
@pytest.mark.parametrize("level", ["bilevel", "single"])
def test_a_search_that_was_killed_ends_as_an_uninterrupted_one(tmp_path, die_at, level) -> None:
    whole = search(tmp_path / "whole", level=level)
    search(tmp_path / "broken", die_at, level=level)
    assert (tmp_path / "broken/last.ckpt").exists()
    resumed = search(tmp_path / "broken", level=level)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert resumed.steps == whole.steps == EPOCHS * 10
    assert [step for step, _, _ in resumed.trajectory] == [step for step, _, _ in whole.trajectory]
    assert resumed.history == whole.history


def test_second_order_search_runs_and_differs_from_the_first(tmp_path) -> None:
    first, second = search(tmp_path / "1"), search(tmp_path / "2", order=2)
    assert not torch.equal(first.trajectory[-1][2], second.trajectory[-1][2])


def test_fields_may_differ_in_their_candidates(tmp_path) -> None:
    recorded: list[dict[str, float]] = []
    module = search(tmp_path, candidates=[[1, 2, 4], [0, 2], [4]], recorded=recorded)
    last = recorded[-1]
    assert [name for name in last if name.startswith("p/")] == [
        *("p/user/1", "p/user/2", "p/user/4"),
        *("p/item/0", "p/item/2", "p/tags/4"),
    ]
    assert last["p/tags/4"] == 1
    assert last["p/item/0"] + last["p/item/2"] == pytest.approx(1)
    assert last["expected_dim/item"] == pytest.approx(2 * last["p/item/2"])
    p = module.trajectory[-1][2].numpy()
    priced = prices(autodim.build, SCHEMA, [[1, 2, 4], [0, 2], [4]], 4)
    expected = (p[0] * priced[0]).sum() + p[1, 1] * priced[1, 1] + priced[2, 0]
    assert last["expected_bytes"] == pytest.approx(expected)


def test_the_architecture_waits_for_the_warm_up(tmp_path) -> None:
    module = search(tmp_path)
    assert module.trajectory[0][0] == 7  # a fifth of 30 steps are warm-up
    assert module.arch_steps == 24


def test_a_retraining_stops_early_and_keeps_the_best_weights(tmp_path) -> None:
    torch.manual_seed(0)
    model = assemble(SCHEMA, 4, Allocation("full", dict.fromkeys(SCHEMA.names, 4)), full.build, Backbone)
    batches = Batches(rows(300, 1), 50, seed=0)
    module = LitCTR(model, rows(200, 2), 50 * len(batches), lr=0.02, patience=2)
    fit(module, batches, 50, "retrain", tmp_path / "last.ckpt")
    aucs = [entry["auc"] for entry in module.history]
    assert len(aucs) < 50 and len(aucs) - 1 - aucs.index(max(aucs)) == 2
    model.load_state_dict(module.best)
    again = LitCTR(model, rows(200, 2), 1)
    again.on_train_epoch_end()
    assert again.history[0]["auc"] == max(aucs)


def test_weight_decay_is_of_tables_and_memories_and_of_no_other_part() -> None:
    allocation = robe.derive(Evidence(SCHEMA, 4, ((4,),) * len(SCHEMA), np.ones((len(SCHEMA), 1)), 1000, budget=400))
    model = CTRModel(SCHEMA, robe.build(SCHEMA, 4, allocation), Backbone)
    module = LitCTR(model, rows(20, 1), 1, weight_decay=0.1)
    decay = {
        id(p): group["weight_decay"]
        for optimizer in module.configure_optimizers()
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert len(decay) == len(list(model.parameters()))
    tables = {id(module.weight) for module in model.modules() if isinstance(module, Table)}
    for name, parameter in model.named_parameters():
        decayed = name == "embedding.memory.weight" or id(parameter) in tables
        assert decay[id(parameter)] == (0.1 if decayed else 0), name


def test_an_architecture_step_leaves_running_statistics_alone() -> None:
    priced = prices(autodim.build, SCHEMA, CANDIDATES, 4)
    model = CTRModel(SCHEMA, autodim.search(SCHEMA, 4, CANDIDATES, priced), Backbone)
    before = {name: value.clone() for name, value in model.named_buffers() if "num_batches" not in name}
    ids = torch.from_numpy(rows(40, 0).slice(0, 40)[0])
    with frozen_statistics(model):
        model(ids)
    assert all(torch.equal(value, dict(model.named_buffers())[name]) for name, value in before.items())
    model(ids)
    assert not torch.equal(model.embedding.mixture.mean, before["embedding.mixture.mean"])


def test_margins() -> None:
    p = torch.tensor([[0.5, 0.3, 0.2], [1.0, 0.0, 0.0]])
    torch.testing.assert_close(margins(p), torch.tensor([0.2, 1.0]))
    assert margins(torch.ones(2, 1)).tolist() == [1, 1]
