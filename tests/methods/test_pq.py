"""Product quantisation after training: k-means, and training that is the plain model's."""

import torch

from pipeline.allocation.allocation import Allocation
from pipeline.data.schema import Field, Schema
from pipeline.embeddings.batch import Lookup
from pipeline.embeddings.mixed import MixedTables
from pipeline.embeddings.product_codes import closest, decode
from pipeline.methods import pq

SCHEMA = Schema((Field("user", 400), Field("item", 300), Field("age", 3)))
DIMS = {"user": 8, "item": 8, "age": 8}


def built(centroids: int) -> pq.Clustered:
    torch.manual_seed(0)
    return pq.build(SCHEMA, 8, Allocation("pq", DIMS, {"groups": 4, "centroids": [centroids]}))


def test_k_means_finds_the_clusters_of_every_group_and_is_the_same_each_time() -> None:
    torch.manual_seed(0)
    centres = torch.randn(3, 6, 2) * 20
    chosen = torch.randint(6, (3, 3000))
    vectors = torch.stack([centres[g, chosen[g]] for g in range(3)], 1).reshape(3000, 6) + 0.01 * torch.randn(3000, 6)
    books = pq.k_means(vectors, 3, 30)  # more centroids than clusters, so that none is missed
    assert torch.equal(books, pq.k_means(vectors, 3, 30))
    error = vectors - decode(closest(vectors, books), books)
    assert float(error.abs().max()) < 0.1


def test_more_iterations_never_raise_the_error_and_every_centroid_has_a_vector() -> None:
    torch.manual_seed(0)
    vectors = torch.randn(2000, 4)
    errors = []
    for iterations in (1, 3, 10, 30):
        books = pq.k_means(vectors, 2, 16, iterations)
        codes = closest(vectors, books)
        assert all(len(column.unique()) == 16 for column in codes.T)
        errors.append(float((vectors - decode(codes, books)).square().sum()))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.9 * errors[0]


def test_centroids_of_a_large_table_are_fitted_to_a_part_of_it(monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(pq, "closest", lambda vectors, books: seen.append(len(vectors)) or closest(vectors, books))
    pq.k_means(torch.randn(5000, 4), 2, 4, iterations=2)
    assert seen == [4 * pq.PER_CENTROID] * 2


def test_before_finish_it_is_the_plain_model_and_after_it_every_vector_is_near_the_trained_one() -> None:
    made, plain = built(64), MixedTables(SCHEMA, DIMS, 8)
    with torch.no_grad():
        made.queries.weight.normal_()
        made.table.weight.normal_()
        plain.tables["8"].weight.copy_(torch.cat([made.queries.weight, made.table.weight]))
    generator = torch.Generator().manual_seed(1)
    ids = torch.stack([torch.randint(n, (200,), generator=generator) for n in (400, 300, 3)], 1).int()
    occ = Lookup(SCHEMA)(ids)
    trained = plain(occ).detach()
    assert torch.equal(made(occ), trained)
    made.finish()
    served = made(occ).detach()
    assert torch.equal(served[:, 2], trained[:, 2])  # a small field keeps its own
    error, power = (served - trained)[:, :2].square().mean(), trained[:, :2].square().mean()
    assert 0 < float(error) < 0.05 * float(power)  # 64 centroids for 2 coordinates: 3 bits each
    assert bool((made.perplexity() > 32).all())
