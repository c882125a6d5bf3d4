"""Products with the matrices of the graph equal those with dense matrices."""

import copy

import pytest
import torch
from torch import Tensor

from pipeline.models.graph import Graph

USERS = torch.tensor([0, 0, 1, 2, 2, 2, 1])
ITEMS = torch.tensor([4, 5, 5, 4, 6, 5, 5])  # the pair of nodes 1 and 5 is there twice
NODES = 8  # 3 and 7 have no edge


def graph() -> Graph:
    return Graph(USERS, ITEMS, NODES).double()


def dense_adjacency(loops: int) -> Tensor:
    matrix = torch.zeros(NODES, NODES, dtype=torch.float64)
    for u, i in zip(USERS.tolist(), ITEMS.tolist(), strict=True):
        matrix[u, i] += 1
        matrix[i, u] += 1
    degrees = matrix.sum(1)
    scale = torch.tensor([0 if d == 0 else (d + loops) ** -0.5 for d in degrees.tolist()], dtype=torch.float64)
    return scale[:, None] * matrix * scale


def dense_incidence() -> Tensor:
    degrees = torch.bincount(torch.cat([USERS, ITEMS]), minlength=NODES).tolist()
    matrix = torch.zeros(len(USERS), NODES, dtype=torch.float64)
    for e, (u, i) in enumerate(zip(USERS.tolist(), ITEMS.tolist(), strict=True)):
        matrix[e, u] = (degrees[u] + 1) ** -0.5
        matrix[e, i] = -((degrees[i] + 1) ** -0.5)
    return matrix


PRODUCTS = {
    "adjacent": (lambda g, x: g.adjacent(x), lambda: dense_adjacency(0)),
    "adjacent with loops": (lambda g, x: g.adjacent(x, loops=1), lambda: dense_adjacency(1)),
    "laplacian": (lambda g, x: g.laplacian(x), lambda: dense_incidence().T @ dense_incidence()),
    "differences": (lambda g, x: g.differences(x), dense_incidence),
    "gather": (lambda g, x: g.gather(x), lambda: dense_incidence().T),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_and_its_gradient_are_those_of_the_dense_matrix(name: str) -> None:
    ours, matrix = PRODUCTS[name][0], PRODUCTS[name][1]()
    torch.manual_seed(0)
    values = torch.randn(matrix.shape[1], 3, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(ours(graph(), values), matrix @ values, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(lambda x: ours(graph(), x), (values,))


def test_a_graph_made_in_single_precision_is_as_exact_as_its_values() -> None:
    values = torch.randn(NODES, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    single = Graph(USERS, ITEMS, NODES)
    for name, (ours, matrix) in PRODUCTS.items():
        if name != "gather":
            torch.testing.assert_close(ours(single, values), matrix() @ values, rtol=1e-13, atol=1e-13)


def test_a_node_without_edges_gets_nothing_and_keeps_nothing() -> None:
    values = torch.ones(NODES, 2, dtype=torch.float64)
    assert not graph().adjacent(values)[[3, 7]].any()
    assert not graph().laplacian(values)[[3, 7]].any()


def test_a_graph_without_edges_is_of_zeros() -> None:
    none = Graph(USERS[:0], ITEMS[:0], NODES)
    assert not none.adjacent(torch.ones(NODES, 2)).any() and not none.laplacian(torch.ones(NODES, 2)).any()
    assert none.differences(torch.ones(NODES, 2)).shape == (0, 2)


def test_the_type_of_the_values_may_change_and_a_copy_gives_the_same() -> None:
    single = Graph(USERS, ITEMS, NODES)
    values = torch.randn(NODES, 2)
    first = single.adjacent(values)
    torch.testing.assert_close(single.adjacent(values.double()).float(), first)
    assert torch.equal(copy.deepcopy(single).adjacent(values), first)
    assert not single.state_dict()


def test_no_matrix_of_all_pairs_of_nodes_is_made() -> None:
    """300,000 nodes: a dense matrix would have 9 * 10**10 numbers."""
    nodes, edges = 300_000, 1000
    generator = torch.Generator().manual_seed(0)
    users = torch.randint(nodes // 2, (edges,), generator=generator)
    large = Graph(users, torch.randint(nodes // 2, nodes, (edges,), generator=generator), nodes)
    values = torch.ones(nodes, 1, requires_grad=True)
    total = large.adjacent(values).sum() + large.laplacian(values).sum() + large.gather(large.differences(values)).sum()
    total.backward()
    assert values.grad is not None and bool(values.grad.isfinite().all())
