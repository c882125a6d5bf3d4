"""AutoDim-s: the supernet is AutoDim's (test_autodim), its training is not."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.backbones.fm import Backbone
from pipeline.data.batches import Batches
from pipeline.data.schema import Field, Schema
from pipeline.data.split import Split
from pipeline.embeddings.autodim_supernet import Supernet
from pipeline.embeddings.cost import prices
from pipeline.methods import autodim, autodim_s, autodim_target
from pipeline.models.model import CTRModel
from pipeline.training.loop import fit
from pipeline.training.search import LitSearch
from stages import search

SCHEMA = Schema((Field("user", 7), Field("item", 5), Field("age", 3)))
CANDIDATES = ((1, 2, 4), (2, 4), (1, 4))
PRICES = prices(autodim_s.build, SCHEMA, CANDIDATES, 4)


def params(name: str) -> dict:
    given = {"lr": 0.02, "every": 1, "level": "bilevel"}
    return {"method": {"name": name, "options": {}}, "search": {"architecture": given}}


def test_weights_and_architecture_are_trained_on_the_same_batches_whatever_params_yaml_says() -> None:
    assert search.steps(params("autodim_s")).level == "single"
    assert search.steps(params("autodim")).level == "bilevel"
    assert search.steps(params("autodim_s")).lr == 0.02


def rows(number: int, seed: int) -> Split:
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.integers(0, field.cardinality, number) for field in SCHEMA.fields], 1).astype(np.int32)
    return Split((ids,), ((rng.random(number) < np.where(ids[:, 0] % 2, 0.8, 0.2)).astype(np.uint8),))


def searched(method, folder: Path, seed: int) -> Tensor:
    """Scores (F, N) of a search whose rows of ``arch`` are drawn with a seed."""
    torch.manual_seed(0)
    supernet = method.search(SCHEMA, 4, CANDIDATES, PRICES)
    batches = Batches(rows(400, 1), 50, seed=0)
    module = LitSearch(
        CTRModel(SCHEMA, supernet, Backbone),
        rows(100, 2),
        2 * len(batches),
        Batches(rows(200, seed), 50, seed=1),
        search.steps(params(method.__name__.rpartition(".")[2])),
        SCHEMA.names,
        CANDIDATES,
        PRICES,
    )
    fit(module, batches, 2, "search", folder / "last.ckpt")
    return supernet.scores().detach()


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:The number of training batches")
def test_the_architecture_moves_and_rows_of_arch_have_no_part_in_it(tmp_path: Path) -> None:
    first, second = (searched(autodim_s, tmp_path, seed) for seed in (3, 4))
    assert torch.equal(first, second)
    assert float(first[0].exp().max() - first[0].exp().min()) > 0.01
    assert not torch.equal(searched(autodim, tmp_path, 3), searched(autodim, tmp_path, 4))


@pytest.mark.parametrize("method", [autodim_s, autodim_target])
def test_without_options_the_temperature_falls_over_the_run_and_half_of_it_is_warm_up(method) -> None:
    supernet = method.search(SCHEMA, 4, CANDIDATES, PRICES)
    assert isinstance(supernet, Supernet)
    seen = []
    for step in range(100):
        supernet.before_step(step, 100)
        seen.append((supernet.warming(), supernet.watched()["tau"]))
    assert [warming for warming, _ in seen] == [True] * 50 + [False] * 50
    taus = [tau for _, tau in seen[50:]]
    assert taus == sorted(taus, reverse=True) and taus[0] == 1.0 and taus[-1] == pytest.approx(0.1)
