"""AutoDim-s: its supernet is AutoDim's, which test_autodim checks; its training is not."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.backbones.fm import Backbone
from pipeline.data.batches import Batches
from pipeline.data.schema import Field, Schema
from pipeline.data.split import Split
from pipeline.experiment.method import Method
from pipeline.models.model import Model
from pipeline.tasks import ctr
from pipeline.training.loop import fit
from pipeline.training.search import LitSearch
from pipeline.training.task import Task
from pipeline.workflow.params import Architecture
from tests.contracts import problem

SCHEMA = Schema((Field("user", 7), Field("item", 5), Field("age", 3)))
CANDIDATES = ((1, 2, 4), (2, 4), (1, 4))


def rows(number: int, seed: int) -> Split:
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.integers(0, field.cardinality, number) for field in SCHEMA.fields], 1).astype(np.int32)
    return Split((ids,), ((rng.random(number) < np.where(ids[:, 0] % 2, 0.8, 0.2)).astype(np.uint8),))


def searched(name: str, folder: Path, seed: int) -> Tensor:
    """Scores (F, N) of a search whose rows of ``arch`` are drawn with a seed."""
    torch.manual_seed(0)
    method, asked = Method.named(name), problem(name, SCHEMA, 4, CANDIDATES)
    supernet = method.find(asked)
    batches = Batches(rows(400, 1), 50, seed=0)
    architecture = Architecture(**{"lr": 0.02, "every": 1, "level": "bilevel", **method.architecture})
    module = LitSearch(
        Model(SCHEMA, supernet, Backbone),
        Task.of("ctr", ctr, {}),
        rows(100, 2),
        2 * len(batches),
        Batches(rows(200, seed), 50, seed=1),
        architecture,
        SCHEMA.names,
        CANDIDATES,
        asked.prices,
    )
    fit(module, batches, 2, "search", folder / "last.ckpt")
    return supernet.findings().scores.detach()


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:The number of training batches")
def test_the_architecture_learns_and_rows_of_arch_make_no_difference(tmp_path: Path) -> None:
    first, second = (searched("autodim_s", tmp_path, seed) for seed in (3, 4))
    assert torch.equal(first, second)
    assert float(first[0].exp().max() - first[0].exp().min()) > 0.01
    assert not torch.equal(searched("autodim", tmp_path, 3), searched("autodim", tmp_path, 4))


@pytest.mark.parametrize("name", ["autodim_s", "autodim_target", "autodim_int8"])
def test_by_default_half_of_the_run_is_warm_up_and_then_the_temperature_falls(name: str) -> None:
    supernet = Method.named(name).find(problem(name, SCHEMA, 4, CANDIDATES))
    seen = []
    for step in range(100):
        supernet.before_step(step, 100)
        seen.append((supernet.warming(), supernet.findings().watched["tau"]))
    assert [warming for warming, _ in seen] == [True] * 50 + [False] * 50
    taus = [tau for _, tau in seen[50:]]
    assert taus == sorted(taus, reverse=True) and taus[0] == 1.0 and taus[-1] == pytest.approx(0.1)
