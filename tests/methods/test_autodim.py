"""AutoDim's decision and its paper's settings; the mixture itself is tested in test_mixtures."""

import itertools

import numpy as np
import pytest
import torch

from pipeline.allocation.evidence import Evidence
from pipeline.data.schema import Field, Schema
from pipeline.embeddings.cost import full_tables, prices
from pipeline.methods import autodim

SCHEMA = Schema((Field("user", 70), Field("item", 50), Field("age", 3)))
CANDIDATES = ((2, 4), (0, 1, 2, 4), (1, 2, 4))
DIM = 4
PRICES = prices(autodim.build, SCHEMA, CANDIDATES, DIM)


def given(seed: int = 0, **more) -> Evidence:
    rng = np.random.default_rng(seed)
    scores = np.full((3, 4), -np.inf)
    for f, offered in enumerate(CANDIDATES):
        scores[f, : len(offered)] = np.log(rng.dirichlet(np.ones(len(offered))))
    return Evidence(SCHEMA, DIM, CANDIDATES, PRICES, full_tables(SCHEMA, DIM).bytes, **{"scores": scores, **more})


def test_without_a_budget_each_field_takes_its_most_probable_dimension_ties_to_the_smaller() -> None:
    scores = np.array([[-1.2, -0.3, -np.inf, -np.inf], [-2.3, -0.9, -0.9, -2.3], [-1.6, -1.2, -0.7, -np.inf]])
    assert autodim.derive(given(scores=scores)).dims == {"user": 4, "item": 1, "age": 4}


@pytest.mark.parametrize("seed", range(10))
def test_under_a_budget_the_choice_is_the_most_probable_of_all_that_fit(seed: int) -> None:
    evidence = given(seed)
    budget = int(np.random.default_rng(seed).integers(PRICES.min(1).sum(), evidence.full_bytes))
    fitting = [
        (sum(evidence.scores[f, n] for f, n in enumerate(choice)), choice)
        for choice in itertools.product(*(range(len(offered)) for offered in CANDIDATES))
        if sum(PRICES[f, n] for f, n in enumerate(choice)) <= budget
    ]
    dims = autodim.derive(given(seed, budget=budget)).dims
    chosen = [offered.index(dims[name]) for name, offered in zip(SCHEMA.names, CANDIDATES, strict=True)]
    assert sum(evidence.scores[f, n] for f, n in enumerate(chosen)) == pytest.approx(max(fitting)[0], abs=1e-9)
    assert sum(PRICES[f, n] for f, n in enumerate(chosen)) <= budget


def test_the_defaults_are_the_paper_s() -> None:
    selection = autodim.search(SCHEMA, DIM, CANDIDATES, PRICES).selection
    assert (selection.start, selection.rate, selection.floor, selection.per) == (1.0, 0.00005, 0.01, "step")
    assert not bool(selection.warming)
    supernet = autodim.search(SCHEMA, DIM, CANDIDATES, PRICES)
    loss = torch.tensor(0.7)
    assert supernet.objective(loss, "arch") is loss and supernet.objective(loss, "train") is loss
    torch.testing.assert_close(supernet.scores().exp()[0], torch.tensor([0.5, 0.5, 0.0, 0.0]))


def test_the_architecture_s_loss_alone_holds_the_expected_share_of_the_dearest_choice_s_bytes() -> None:
    supernet = autodim.search(SCHEMA, DIM, CANDIDATES, PRICES, bytes_weight=0.5)
    with torch.no_grad():
        supernet.selection.logits.copy_(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)))
    there = np.array([[n < len(offered) for n in range(4)] for offered in CANDIDATES])
    priced = np.where(there, PRICES, 0)
    expected = float((supernet.scores().exp().detach().numpy() * priced).sum() / priced.max(1).sum())
    loss = torch.tensor(0.7)
    assert float(supernet.objective(loss, "arch").detach()) == pytest.approx(0.7 + 0.5 * expected, rel=1e-5)
    assert supernet.objective(loss, "train") is loss


def test_the_price_of_a_dimension_is_alike_for_all_fields() -> None:
    supernet = autodim.search(SCHEMA, DIM, CANDIDATES, PRICES, dims_weight=0.3)
    loss = torch.tensor(0.7)
    # mean dimension of equal weights: user 3, item (0 + 1 + 2 + 4) / 4, age 7 / 3, each a share of D = 4
    expected = np.mean([3, 7 / 4, 7 / 3]) / DIM
    assert float(supernet.objective(loss, "arch").detach()) == pytest.approx(0.7 + 0.3 * expected, rel=1e-5)
    gradient = torch.autograd.grad(supernet.objective(loss, "arch"), supernet.arch_parameters())[0]
    twin = autodim.search(SCHEMA, DIM, [[2, 4]] * 3, PRICES[:, :2], dims_weight=0.3)
    rows = torch.autograd.grad(twin.objective(loss, "arch"), twin.arch_parameters())[0]
    torch.testing.assert_close(rows, rows[:1].expand(3, 2))  # 70, 50 or 3 values: the same
    assert bool((gradient[1, 3] > 0) & (gradient[1, 0] < 0))


def test_only_the_logits_are_architecture() -> None:
    supernet = autodim.search(SCHEMA, DIM, CANDIDATES, PRICES)
    (logits,) = supernet.arch_parameters()
    assert logits is supernet.selection.logits


def test_a_foreign_setting_of_the_temperature_is_refused() -> None:
    with pytest.raises(ValueError, match=r"method.options: temperature in params.yaml: no option 'end'; valid are"):
        autodim.search(SCHEMA, DIM, CANDIDATES, PRICES, temperature={"end": 0.1})
