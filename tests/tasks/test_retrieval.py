"""The task of retrieval against loops over rows, and against brute force."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.data.encoded import Encoded
from pipeline.data.split import Split
from pipeline.models import nearest
from pipeline.tasks import retrieval
from pipeline.training.task import Task
from tests.interactions import retriever, write_interactions

ITEMS = 20


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Encoded:
    return Encoded.load(write_interactions(tmp_path_factory.mktemp("data"), history=0))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Encoded:
    return Encoded.load(write_interactions(tmp_path_factory.mktemp("shop"), history=3))


def task(**options: Any) -> Task:
    return Task.of("retrieval", retrieval, options)


def scores_of(model: Any, rows: np.ndarray, score: str = "cosine") -> Tensor:
    """(n, items) the score of every item for every row, one row at a time."""
    with torch.enable_grad():
        lines = []
        for row in rows:
            queries, items = model(torch.from_numpy(row[None].copy()))
            query = queries[0] / queries[0].norm() if score == "cosine" else queries[0]
            lines.append(torch.stack([item @ query / (item.norm() if score == "cosine" else 1) for item in items]))
    return torch.stack(lines)


def known_to(split: Split) -> dict[int, set[int]]:
    known: dict[int, set[int]] = {}
    for row in np.concatenate(split.ids):
        known.setdefault(int(row[1]), set()).add(int(row[2]))
    return known


def weighted(losses: list[Tensor], query: list[int], power: float) -> Tensor:
    weights = [query.count(q) ** (power - 1) for q in query]
    return sum(w * x for w, x in zip(weights, losses, strict=True)) / sum(weights)


SOFTMAX = [
    {},
    {"negatives": 0},
    {"in_batch": False, "negatives": 6},
    {"negatives": 6, "mask_known": False, "logq": False},
    {"negatives": 5000, "in_batch": False, "temperature": 0.5},
    {"negatives": 4, "score": "dot", "query_power": 0.0},
    {"negatives": 4, "query_power": 0.5, "logq": False},
]


@pytest.mark.parametrize("kind", ["graph", "towers"])
@pytest.mark.parametrize("options", SOFTMAX, ids=str)
def test_the_softmax_is_a_loop_over_the_candidates_of_each_row(
    data: Encoded, shop: Encoded, options: dict[str, Any], kind: str
) -> None:
    here, name = (data, "lightgcn") if kind == "graph" else (shop, "two_tower")
    rows, model, mine = here.split("train"), retriever(here, name), task(**options)
    known = known_to(rows)
    batch = mine.batches(rows, 25, 0).take()
    ids, drawn = batch.ids.numpy(), batch.drawn
    scores = scores_of(model, ids, options.get("score", "cosine")) / options.get("temperature", 0.1)
    candidates = set(drawn.numbers.tolist())
    if options.get("in_batch", True):
        candidates |= set(ids[:, 2].tolist())
    query, losses = drawn.query.tolist(), []
    for row in range(len(ids)):
        own = int(ids[row, 2])
        left_out = {int(ids[other, 2]) for other in range(len(ids)) if query[other] == query[row]}
        if options.get("mask_known", True):
            left_out |= known[int(ids[row, 1])]
        total = scores[row, own].exp()
        for item in candidates - left_out:
            corrected = scores[row, item] - (drawn.chances[item] if options.get("logq", True) else 0)
            total = total + corrected.exp()
        losses.append(total.log() - scores[row, own])
    expected = weighted(losses, query, options.get("query_power", 1.0))
    ours = mine.loss(model, batch)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-8)
    parameters = list(model.parameters())
    for a, b in zip(*(torch.autograd.grad(x, parameters, allow_unused=True) for x in (ours, expected)), strict=True):
        if b is not None:
            a, b = (x.to_dense() if x.is_sparse else x for x in (a, b))
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("score", ["cosine", "dot"])
def test_bpr_is_a_loop_over_rows_and_their_drawn_items(data: Encoded, score: str) -> None:
    rows, model = data.split("train"), retriever(data, "mf")
    mine = task(loss="bpr", negatives=3, score=score, temperature=0.7, query_power=0.0)
    batch = mine.batches(rows, 25, 0).take()
    scores = scores_of(model, batch.ids.numpy(), score) / 0.7
    losses = []
    for row, numbers in enumerate(batch.drawn.numbers.tolist()):
        margins = [scores[row, int(batch.ids[row, 2])] - scores[row, item] for item in numbers]
        losses.append(sum((1 + (-margin).exp()).log() for margin in margins) / 3)
    expected = weighted(losses, batch.drawn.query.tolist(), 0.0)
    torch.testing.assert_close(mine.loss(model, batch), expected)


@pytest.mark.parametrize(("in_batch", "tolerance"), [(False, 0.04), (True, 0.13)])
def test_with_logq_the_sum_over_the_candidates_is_right_on_average_and_without_it_is_not(
    data: Encoded, in_batch: bool, tolerance: float
) -> None:
    """A query has one place of the few in the batch itself, so items of the batch are a little rarer for it."""
    rows, model = data.split("train"), retriever(data, "mf").requires_grad_(False)
    means = {}
    for logq in (True, False):
        batches = task(negatives=6, in_batch=in_batch, mask_known=False).batches(rows, 20, 0)
        ratios = []
        for _ in range(200):
            batch = batches.take()
            scores = scores_of_all(model, batch.ids) / 0.5
            _, others = retrieval._scores(model, batch, 0.5, "cosine", in_batch, logq)
            for q in range(len(others)):
                own = set(batch.ids[batch.drawn.query == q, 2].tolist())
                rest = [item for item in range(ITEMS - 1) if item not in own]
                ratios.append(float(others[q].exp().sum() / scores[q, rest].exp().sum()))
        means[logq] = np.mean(ratios)
    assert abs(means[True] - 1) < tolerance and means[False] < 0.8


@torch.no_grad()
def scores_of_all(model: Any, ids: Tensor) -> Tensor:
    """(queries of the batch, items): cosines, for rows of which each user is one query."""
    users = list(dict.fromkeys(ids[:, 1].tolist()))
    first = [ids[:, 1].tolist().index(user) for user in users]
    queries, items = (x / x.norm(dim=1, keepdim=True) for x in model(ids[first]))
    return queries @ items.T


def test_a_batch_in_which_nothing_else_is_a_candidate_has_no_loss_and_finite_gradients(data: Encoded) -> None:
    rows, model = data.split("train"), retriever(data, "mf")
    mine = task(negatives=0)
    batch = mine.batches(rows, 1, 0).take()  # one user
    loss, probe = mine.loss(model, batch), mine.probe(model, batch)
    assert float(loss.detach()) == 0
    for value in (loss, probe):
        for gradient in torch.autograd.grad(value, list(model.parameters()), retain_graph=True):
            assert not gradient.to_dense().any()


@pytest.mark.parametrize(
    "options", [{"negatives": 4}, {"loss": "bpr", "negatives": 2}, {"negatives": 4, "in_batch": False}]
)
def test_the_outer_products_of_the_probe_average_to_the_gauss_newton_matrix(
    data: Encoded, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the vectors of all users and items of a small batch, with J^T H J of every row by autograd."""
    rows, mine = data.split("train").head(60), task(temperature=0.8, **options)
    model = retriever(data, "lightgcn", dim=2)
    batch = mine.batches(rows, 6, 0).take()
    ids, drawn = batch.ids.numpy(), batch.drawn
    vectors = torch.cat([x.detach() for x in model(batch.ids[drawn.first])])
    groups = len(drawn.first)

    class Linear:
        """Gives the vectors that are the variables."""

        def __init__(self, flat: Tensor) -> None:
            self.flat = flat.view(vectors.shape)

        def __call__(self, _: Tensor, numbers: Tensor | None = None) -> tuple[Tensor, Tensor]:
            items = self.flat[groups:]
            return self.flat[:groups], items if numbers is None else items[numbers]

    flat = vectors.flatten().clone().requires_grad_()
    expected = torch.zeros(len(flat), len(flat), dtype=torch.float64)
    for row in range(len(ids)):
        if options.get("loss") == "bpr":
            margins = retrieval._margins(Linear(flat), batch, 0.8, "cosine")[row]
            jacobian = torch.stack([torch.autograd.grad(x, flat, retain_graph=True)[0] for x in margins])
            p = margins.detach().sigmoid()
            second = torch.diag(p * (1 - p) / len(p))
        else:
            own, others = retrieval._scores(Linear(flat), batch, 0.8, "cosine", options.get("in_batch", True), True)
            mine_of = others[drawn.query[row]]
            z = torch.cat([own[row, None], mine_of[mine_of > -1e8]])
            jacobian = torch.stack([torch.autograd.grad(x, flat, retain_graph=True)[0] for x in z])
            p = z.detach().softmax(0)
            second = torch.diag(p) - p[:, None] * p
        expected += jacobian.T @ second @ jacobian
    generators = iter(range(10**9))
    original = torch.Generator.manual_seed

    class Fresh(torch.Generator):
        """The probe's seed depends on the batch alone; here every call has another one."""

        def manual_seed(self, seed: int) -> torch.Generator:
            return original(self, next(generators))

    monkeypatch.setattr(torch, "Generator", Fresh)
    total, number = torch.zeros_like(expected), 1000
    for _ in range(number):
        (gradient,) = torch.autograd.grad(mine.probe(Linear(flat), batch), flat)
        total += torch.outer(gradient, gradient)
    error = (total / number - expected).norm() / expected.norm()
    assert float(error) < 0.2
    assert float((total / number).trace() / expected.trace()) == pytest.approx(1, abs=0.1)


def test_the_probe_depends_on_the_batch_alone_and_leaves_the_random_state_alone(data: Encoded) -> None:
    rows, model, mine = data.split("train"), retriever(data, "mf"), task(negatives=4)
    batch = mine.batches(rows, 25, 0).take()
    before = torch.get_rng_state()
    first = mine.probe(model, batch)
    torch.rand(3)
    assert torch.equal(mine.probe(model, batch), first) and not torch.equal(torch.get_rng_state(), before)
    before = torch.get_rng_state()
    mine.probe(model, batch)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("mask_seen", [True, False])
@pytest.mark.parametrize("score", ["cosine", "dot"])
@pytest.mark.parametrize("name", ["lightgcn", "mf", "two_tower"])
def test_predictions_are_the_best_items_by_brute_force(
    data: Encoded, shop: Encoded, monkeypatch: pytest.MonkeyPatch, name: str, score: str, mask_seen: bool
) -> None:
    here = shop if name == "two_tower" else data
    model, rows = retriever(here, name), here.split("test")
    monkeypatch.setattr(retrieval, "ROWS", 7)
    monkeypatch.setattr(retrieval, "TOGETHER", 3)
    monkeypatch.setattr(nearest, "TOGETHER", 2)
    mine = task(score=score, mask_seen=mask_seen)
    found = mine.predict(model.train(), rows)
    assert model.training
    model.eval()
    ids = np.concatenate(rows.ids)
    first = [n for n in range(len(ids)) if n == 0 or ids[n, 0] != ids[n - 1, 0]]
    assert found.shape == (len(first), 100) and found.dtype == np.int32
    seen = known_to(here.split("train", "arch", "val"))
    scores = scores_of(model, ids[first], score).detach()
    for ranked, row, values in zip(found.tolist(), ids[first], scores, strict=True):
        allowed = set(range(ITEMS)) - (seen.get(int(row[1]), set()) if mask_seen else set())
        numbers = ranked[: len(allowed)]
        assert set(numbers) == allowed and set(ranked[len(allowed) :]) <= {-1}
        own = values[numbers]
        assert bool((own[:-1] >= own[1:] - 1e-9).all())


def test_predictions_on_val_leave_out_what_came_before_val_alone(data: Encoded) -> None:
    model, rows = retriever(data, "mf"), data.split("val")
    found = task().predict(model, rows)
    before = known_to(data.split("train", "arch"))
    for ranked, user in zip(found, np.unique(rows.ids[0][:, 1]), strict=True):
        assert {int(i) for i in ranked if i >= 0} == set(range(ITEMS)) - before[int(user)]


def test_equal_scores_still_give_every_item_once(data: Encoded) -> None:
    model, rows = retriever(data, "mf"), data.split("test")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    found = task(mask_seen=False).predict(model, rows)
    assert all(
        sorted(ranked[:ITEMS]) == list(range(ITEMS)) and set(ranked[ITEMS:]) == {-1} for ranked in found.tolist()
    )


def test_metrics_are_means_over_queries_and_the_influence_is_that_of_users(data: Encoded) -> None:
    model, rows = retriever(data, "mf"), data.split("test")
    mine = task(mask_seen=False)
    found = mine.predict(model, rows)
    targets = known_to(rows)
    recalls: dict[int, list[float]] = {k: [] for k in (1, 5, 10, 20)}
    ndcgs, ranks = [], []
    for ranked, user in zip(found.tolist(), np.unique(rows.ids[0][:, 1]), strict=True):
        hit = [item in targets[int(user)] for item in ranked]
        for k, values in recalls.items():
            values.append(sum(hit[:k]) / len(targets[int(user)]))
        gains = sum(1 / math.log2(place + 2) for place in range(20) if hit[place])
        ndcgs.append(gains / sum(1 / math.log2(place + 2) for place in range(min(20, len(targets[int(user)])))))
        ranks.append(1 / (1 + hit.index(True)))
    metrics = mine.measure(found, rows)
    assert list(metrics) == list(retrieval.METRICS) and next(iter(metrics)) == mine.objective
    for k, values in recalls.items():
        assert metrics[f"recall_{k}"] == pytest.approx(np.mean(values))
    assert metrics["ndcg_20"] == pytest.approx(np.mean(ndcgs)) and metrics["mrr"] == pytest.approx(np.mean(ranks))
    assert metrics["recall_20"] == 1 and metrics["coverage_20"] == 1  # there are 20 items
    influence = task().influence(task().predict(model, rows), rows)
    assert influence.shape == (len(recalls[1]),) and abs(influence.mean()) < 1e-12


@pytest.mark.parametrize("options", [{"loss": "bpr", "negatives": 0}, {"in_batch": False, "negatives": 0}])
def test_a_loss_without_negatives_is_refused(data: Encoded, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"task\.options: negatives must be at least 1, got 0"):
        task(**options).batches(data.split("train"), 20, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, "temperature must be a number above 0, got 0"),
        ({"negatives": -1}, "negatives must be a whole number of at least 0, got -1"),
        ({"score": "euclid"}, "score must be one of cosine, dot, got 'euclid'"),
        ({"query_power": 2}, "query_power must be a number of at least 0 and at most 1, got 2"),
        ({"k": 20}, "there is no 'k'"),
    ],
)
def test_wrong_options_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"params.yaml: task.options: {message}"):
        task(**options)
