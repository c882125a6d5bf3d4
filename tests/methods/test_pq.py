"""Product quantisation after training: k-means, and training that is the plain model's."""

import pytest
import torch

from pipeline.allocation.allocation import Allocation
from pipeline.data.schema import Field, Schema
from pipeline.embeddings import k_means
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
    books = k_means.k_means(vectors, 3, 30)  # more centroids than clusters, so that none is missed
    assert torch.equal(books, k_means.k_means(vectors, 3, 30))
    error = vectors - decode(closest(vectors, books), books)
    assert float(error.abs().max()) < 0.1


def test_more_iterations_never_raise_the_error_and_every_centroid_has_a_vector() -> None:
    torch.manual_seed(0)
    vectors = torch.randn(2000, 4)
    errors = []
    for iterations in (1, 3, 10, 30):
        books = k_means.k_means(vectors, 2, 16, iterations)
        codes = closest(vectors, books)
        assert all(len(column.unique()) == 16 for column in codes.T)
        errors.append(float((vectors - decode(codes, books)).square().sum()))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.9 * errors[0]


def test_centroids_of_a_large_table_are_fitted_to_a_part_of_it(monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(k_means, "closest", lambda vectors, books: seen.append(len(vectors)) or closest(vectors, books))
    k_means.k_means(torch.randn(5000, 4), 2, 4, iterations=2)
    assert seen == [4 * k_means.PER_CENTROID] * 2


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


def test_the_weights_of_rows_are_those_of_the_formulas() -> None:
    counts = torch.tensor([0.0, 1, 2, 3, 4, 1023, 1024])
    assert k_means.row_weights(counts, "none") is None
    assert k_means.row_weights(counts, "log2").tolist() == [1, 1, 1, 1, 2, 9, 10]
    assert k_means.row_weights(counts, "share").tolist() == [0.5, 1, 2, 3, 4, 1023, 1024]


def test_weighted_centroids_are_those_of_rows_that_are_repeated() -> None:
    """With one centroid the fit is a weighted mean; with more, no weighted mean of a cluster is off."""
    torch.manual_seed(0)
    vectors, repeats = torch.randn(40, 4), torch.randint(1, 6, (40,))
    mean = vectors.repeat_interleave(repeats, 0).mean(0)
    torch.testing.assert_close(k_means.k_means(vectors, 2, 1, weights=repeats.float()).flatten(), mean)
    books = k_means.k_means(vectors, 2, 5, iterations=50, weights=repeats.float())
    codes = closest(vectors, books)
    for g in range(2):
        for k in range(5):
            repeated = vectors[:, 2 * g : 2 * g + 2].repeat_interleave(repeats * (codes[:, g] == k), 0)
            torch.testing.assert_close(books[g, k], repeated.mean(0))


def test_frequent_values_are_served_more_exactly_if_they_count_more() -> None:
    class Counts:
        def rows(self) -> int:
            return 10_000

        def weights(self) -> torch.Tensor:
            return torch.cat([torch.where(torch.arange(n) < 20, 0.05, 0.0001) for n in (400, 300, 3)])

        def metrics(self) -> torch.Tensor:
            return torch.zeros(3, 8, 8)

    errors = {}
    for weights in ("none", "log2", "share"):
        torch.manual_seed(0)
        settings = {"groups": 4, "centroids": [16], "weights": weights}
        made = pq.build(SCHEMA, 8, Allocation("pq", DIMS, settings))
        trained = made.queries.weight.detach().clone()
        made.calibrate(Counts())
        made.finish()
        ids = torch.stack([torch.arange(1, 20)] * 2 + [torch.zeros(19, dtype=torch.long)], 1).int()
        served = made(Lookup(SCHEMA)(ids)).detach()[:, :2]
        errors[weights] = float((served - torch.stack([trained[1:20], trained[401:420]], 1)).square().mean())
    assert errors["share"] < errors["log2"] < errors["none"]
    with pytest.raises(ValueError, match="pq: weights 'log2' need the training rows; call calibrate first"):
        pq.build(SCHEMA, 8, Allocation("pq", DIMS, settings | {"weights": "log2"})).finish()
