"""Graph backbones against dense formulas and a solver of the objective of trend filtering."""

import numpy as np
import pytest
import torch
from scipy.optimize import lsq_linear
from torch import Tensor

from pipeline.data.schema import Field, Schema
from pipeline.models import trend
from pipeline.models.graph import Graph
from pipeline.workflow.plug import plug
from pipeline.workflow.validation import checked_options
from tests.models.test_graph import NODES, dense_adjacency, dense_incidence, graph

SCHEMA = Schema((Field("user", 4, role="user"), Field("item", 4, role="item")))
KEYS = {"user": "user", "item": "item"}


def backbone(name: str, **options: float) -> torch.nn.Module:
    made = plug("backbones", name).Backbone
    return made(SCHEMA, 3, KEYS, **checked_options([made], options, "here")).eval()


def values(seed: int = 0, columns: int = 3) -> Tensor:
    return torch.randn(NODES, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("layers", [1, 3, 4])
def test_lightgcn_is_the_mean_of_the_powers_of_the_adjacency(layers: int) -> None:
    matrix, powers = dense_adjacency(0), torch.eye(NODES, dtype=torch.float64)
    total = powers.clone()
    for _ in range(layers):
        powers = matrix @ powers
        total += powers
    given = backbone("lightgcn", layers=layers)(values(), graph())
    torch.testing.assert_close(given, total / (layers + 1) @ values())


@pytest.mark.parametrize(("layers", "beta"), [(1, 0.5), (3, 0.5), (5, 0.2)])
def test_the_linear_filter_is_a_power_of_a_dense_matrix(layers: int, beta: float) -> None:
    incidence = dense_incidence()
    matrix = torch.eye(NODES, dtype=torch.float64) - beta * incidence.T @ incidence
    given = backbone("linear_filter", layers=layers, beta=beta)(values(), graph())
    torch.testing.assert_close(given, torch.linalg.matrix_power(matrix, layers) @ values())


@pytest.mark.parametrize(("layers", "beta"), [(1, 0.5), (3, 0.5), (5, 0.2)])
def test_gtn_is_the_linear_filter_as_long_as_nothing_is_clipped(layers: int, beta: float) -> None:
    start = values().requires_grad_()
    gtn = backbone("gtn", layers=layers, beta=beta, threshold=100.0)
    linear = backbone("linear_filter", layers=layers, beta=beta)
    ours, plain = gtn(start, graph()), linear(start, graph())
    torch.testing.assert_close(ours, plain)
    weight = values(1)
    torch.testing.assert_close(*(torch.autograd.grad((x * weight).sum(), start)[0] for x in (ours, plain)))
    assert gtn.watched()["clipped"] == 0 and gtn.watched()["largest_dual"] < 100


def large() -> tuple[Graph, np.ndarray, Tensor]:
    """A random graph of 50 nodes, its normalised incidence matrix, and vectors."""
    rng = np.random.default_rng(0)
    pairs = np.unique(np.stack([rng.integers(0, 20, 160), rng.integers(20, 50, 160)], 1), axis=0)
    degrees = np.bincount(pairs.ravel(), minlength=50)
    matrix = np.zeros((len(pairs), 50))
    for e, (u, i) in enumerate(pairs):
        matrix[e, u], matrix[e, i] = (degrees[u] + 1) ** -0.5, -((degrees[i] + 1) ** -0.5)
    users, items = torch.from_numpy(pairs.T.copy())
    return Graph(users, items, 50).double(), matrix, torch.from_numpy(rng.normal(size=(50, 2)))


def objective(x: np.ndarray, v: np.ndarray, matrix: np.ndarray, threshold: float) -> float:
    return float(0.5 * np.square(x - v).sum() + threshold * np.abs(matrix @ x).sum())


@pytest.mark.parametrize("threshold", [0.05, 0.3])
def test_many_steps_of_gtn_reach_the_minimum_of_its_objective_and_three_do_not(threshold: float) -> None:
    """The dual of the objective is the least squares of V - Delta^T Z with Z within +-threshold."""
    network, matrix, v = large()
    solved = [lsq_linear(matrix.T, column, (-threshold, threshold), tol=1e-13).x for column in v.numpy().T]
    best = v.numpy() - matrix.T @ np.stack(solved, 1)
    least = objective(best, v.numpy(), matrix, threshold)
    many = backbone("gtn", threshold=threshold)
    many.layers = 5000
    np.testing.assert_allclose(many(v, network).numpy(), best, atol=1e-6)
    three = backbone("gtn", threshold=threshold)(v, network).numpy()
    assert objective(three, v.numpy(), matrix, threshold) > least * 1.0001
    assert np.abs(three - best).max() > 0.01


@pytest.mark.parametrize(("block", "threshold"), [(7, 0.2), (4096, 0.05), (7, 100.0)])
def test_the_steps_of_training_block_by_block_are_those_of_the_whole_dual(
    block: int, threshold: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trend, "BLOCK", block)
    network, _, v = large()
    weight = torch.randn(v.shape, dtype=v.dtype, generator=torch.Generator().manual_seed(1))
    gtn = backbone("gtn", threshold=threshold, dropout=0.0)
    found = []
    for training in (False, True, True):  # the third uses the memory of the second
        v = v.detach().requires_grad_()
        filtered = gtn.train(training)(v, network)
        (filtered.square() * weight).sum().backward()
        found.append((filtered.detach(), v.grad))
    assert threshold == 100 or gtn.watched()["clipped"] > 0
    for values, gradient in found[1:]:
        torch.testing.assert_close(values, found[0][0])
        torch.testing.assert_close(gradient, found[0][1])


def test_the_strain_of_an_edge_is_the_mean_size_of_what_is_clipped() -> None:
    graph, matrix, v = large()
    model = backbone("gtn", layers=1, beta=0.5, threshold=0.01).double().eval()
    expected = np.abs(0.5 * matrix @ v.numpy()).mean(1)
    np.testing.assert_allclose(model.strain(v, graph).numpy(), expected, atol=1e-12)


def test_what_gtn_watches_is_of_the_last_step_before_its_clip() -> None:
    network, matrix, v = large()
    dual = np.zeros((len(matrix), 2))
    for _ in range(3):
        unclipped = dual + 0.5 * matrix @ (v.numpy() - matrix.T @ dual)
        dual = np.clip(unclipped, -0.2, 0.2)
    gtn = backbone("gtn", threshold=0.2)
    assert gtn.watched() == {}
    gtn.train()(v, network)
    assert gtn.watched() == {}  # training passes have dropout after them and are not watched
    gtn.eval()(v, network)
    watched = gtn.watched()
    assert watched["clipped"] == pytest.approx((np.abs(unclipped) > 0.2).mean()) and 0 < watched["clipped"] < 1
    assert watched["largest_dual"] == pytest.approx(np.abs(unclipped).max())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [("gtn", {"beta": 0.6}, "beta"), ("gtn", {"threshold": 0}, "threshold"), ("lightgcn", {"layers": 0}, "layers")],
)
def test_options_that_do_not_converge_are_refused_by_name(name: str, options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=f"here: {message} must be"):
        backbone(name, **options)
