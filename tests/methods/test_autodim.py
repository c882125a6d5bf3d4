"""The decision that AutoDim's variants share, and AutoDim's settings; test_folded_mixture tests the mixture."""

import itertools

import numpy as np
import pytest
import torch

from pipeline.data.schema import Field, Schema
from pipeline.embeddings.cost import cost
from pipeline.embeddings.selection import Temperature
from pipeline.experiment.method import Method
from pipeline.methods import autodim
from tests.contracts import evidence, problem

SCHEMA = Schema((Field("user", 70), Field("item", 50), Field("age", 3)))
CANDIDATES = ((2, 4), (0, 1, 2, 4), (1, 2, 4))
DIM = 4
VARIANTS = ["autodim", "autodim_s", "autodim_int8", "autodim_target"]


def draw_scores(seed: int) -> np.ndarray:
    """(F, N) log-probabilities as a search leaves them: -inf where a field has fewer candidates."""
    rng = np.random.default_rng(seed)
    scores = np.full((3, 4), -np.inf)
    for f, offered in enumerate(CANDIDATES):
        scores[f, : len(offered)] = np.log(rng.dirichlet(np.ones(len(offered))))
    return scores


def given(name: str = "autodim", seed: int = 0, **more):
    return evidence(name, SCHEMA, DIM, CANDIDATES, **{"scores": draw_scores(seed), **more})


def make(**options):
    return autodim.find(problem("autodim", SCHEMA, DIM, CANDIDATES), **options)


PRICES = given().prices


def test_without_a_budget_each_field_takes_its_most_probable_dimension_and_ties_go_to_the_smaller() -> None:
    scores = np.array([[-1.2, -0.3, -np.inf, -np.inf], [-2.3, -0.9, -0.9, -2.3], [-1.6, -1.2, -0.7, -np.inf]])
    assert autodim.derive(given(scores=scores)).dims == {"user": 4, "item": 1, "age": 4}


def test_under_a_budget_the_choice_is_the_most_probable_of_all_that_fit() -> None:
    for seed in range(5):
        scores = draw_scores(seed)
        budget = int(np.random.default_rng(seed).integers(PRICES.min(1).sum(), given().full_bytes))
        fitting = [
            (sum(scores[f, n] for f, n in enumerate(choice)), choice)
            for choice in itertools.product(*(range(len(offered)) for offered in CANDIDATES))
            if sum(PRICES[f, n] for f, n in enumerate(choice)) <= budget
        ]
        dims = autodim.derive(given(seed=seed, budget=budget)).dims
        chosen = [offered.index(dims[name]) for name, offered in zip(SCHEMA.names, CANDIDATES, strict=True)]
        assert sum(scores[f, n] for f, n in enumerate(chosen)) == pytest.approx(max(fitting)[0], abs=1e-9), seed
        assert sum(PRICES[f, n] for f, n in enumerate(chosen)) <= budget, seed


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_takes_candidates_and_keeps_the_budget_down_to_the_cheapest_choice(name: str) -> None:
    method, least = Method.named(name), int(given(name).prices.min(1).sum())
    for seed in range(2):
        for budget in (None, given(name).full_bytes // 2, least, given(name).full_bytes * 10):
            allocation = method.derive(given(name, seed, budget=budget))
            assert all(d in offered for d, offered in zip(allocation.dims.values(), CANDIDATES, strict=True))
            kept = SCHEMA.subset(allocation.kept())
            size = cost(method.build(kept, DIM, allocation.of_kept()).packed()).bytes
            assert budget is None or size <= budget
            assert size == least or budget != least
        assert allocation == method.derive(given(name, seed)), "a budget that every choice fits changes nothing"
    with pytest.raises(ValueError, match=f"no choice costs {least - 1} bytes or less: the least is {least} bytes, "):
        method.derive(given(name, budget=least - 1))
    with pytest.raises(ValueError, match=f"{name} needs the scores of a search, got none"):
        method.derive(given(name, scores=None))


@pytest.mark.parametrize("name", VARIANTS)
def test_scores_are_log_probabilities_of_each_field_s_own_candidates(name: str) -> None:
    supernet = Method.named(name).find(problem(name, SCHEMA, DIM, CANDIDATES))
    with torch.no_grad():
        supernet.selection.logits.copy_(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)))
    p = supernet.findings().scores.detach().exp()
    torch.testing.assert_close(p.sum(1), torch.ones(3))
    assert [int((row > 0).sum()) for row in p] == [2, 4, 3]


def test_the_defaults_are_the_paper_s() -> None:
    supernet = make()
    assert supernet.selection.temperature == Temperature(start=1.0, rate=0.00005, floor=0.01, per="step")
    assert not supernet.warming()
    loss = torch.tensor(0.7)
    assert supernet.objective(loss, "arch") is loss and supernet.objective(loss, "train") is loss
    torch.testing.assert_close(supernet.findings().scores.exp()[0], torch.tensor([0.5, 0.5, 0.0, 0.0]))


def test_only_the_architecture_s_loss_has_the_expected_share_of_the_most_expensive_choice_s_bytes() -> None:
    supernet = make(bytes_weight=0.5)
    with torch.no_grad():
        supernet.selection.logits.copy_(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)))
    there = np.array([[n < len(offered) for n in range(4)] for offered in CANDIDATES])
    priced = np.where(there, PRICES, 0)
    p = supernet.findings().scores.exp().detach().numpy()
    expected = float((p * priced).sum() / priced.max(1).sum())
    loss = torch.tensor(0.7)
    assert float(supernet.objective(loss, "arch").detach()) == pytest.approx(0.7 + 0.5 * expected, rel=1e-5)
    assert supernet.objective(loss, "train") is loss


def test_the_price_of_a_dimension_is_the_same_for_all_fields() -> None:
    supernet, loss = make(dims_weight=0.3), torch.tensor(0.7)
    # Mean dimension with equal weights: user 3, item (0 + 1 + 2 + 4) / 4, age 7 / 3, each a share of D = 4.
    expected = np.mean([3, 7 / 4, 7 / 3]) / DIM
    assert float(supernet.objective(loss, "arch").detach()) == pytest.approx(0.7 + 0.3 * expected, rel=1e-5)
    gradient = torch.autograd.grad(supernet.objective(loss, "arch"), supernet.arch_parameters())[0]
    assert bool((gradient[1, 3] > 0) & (gradient[1, 0] < 0))
    twin = autodim.find(problem("autodim", SCHEMA, DIM, [[2, 4]] * 3), dims_weight=0.3)
    rows = torch.autograd.grad(twin.objective(loss, "arch"), twin.arch_parameters())[0]
    torch.testing.assert_close(rows, rows[:1].expand(3, 2))  # the same for 70, 50 and 3 values


def test_only_the_logits_are_architecture() -> None:
    supernet = make()
    (logits,) = supernet.arch_parameters()
    assert logits is supernet.selection.logits


@pytest.mark.parametrize(
    ("temperature", "message"),
    [
        ({"end": 0.1}, "temperature: there is no 'end'; valid are start, rate, floor, per"),
        ({"warm_up": 0.1}, "temperature: there is no 'warm_up'"),
        ({"floor": 2.0}, "temperature: the floor must be at most the start, got floor=2, start=1"),
        ({"floor": 0.0}, "temperature.floor must be a number above 0, got 0.0"),
        ({"rate": -1.0}, "temperature.rate must be a number of at least 0, got -1.0"),
        ({"per": "epoch"}, "temperature.per must be one of step, run, got 'epoch'"),
    ],
)
def test_a_wrong_temperature_is_refused_by_its_key(temperature: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"method.options.autodim: {message}"):
        Method.named("autodim", {"temperature": temperature})
